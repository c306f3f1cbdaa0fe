"""A worker as a member of its federation: it registers, reads the lease, closes and opens its barrier, and leaves.

`look` is the whole protocol: one heartbeat script, then one decision. Bells only make it happen sooner. A freeze for
a checkpoint fails open (I3); one for a restore fails closed: without an explicit thaw the worker leaves with 75.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lych_checkpoint.errors import Away, CheckpointError
from lych_checkpoint.lease import requests, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.lease.lease import LeaseFacts
from lych_checkpoint.worker.barrier import Barrier

logger = logging.getLogger(__name__)

#: sysexits.h EX_TEMPFAIL: start me again.
EXIT_AGAIN = 75
#: Failed looks after which a worker frozen for a restore gives up.
_RESTORE_MISSES = 2
#: How often a worker reads which commits are on its disk, for `status`.
_DISK_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Freeze:
    """The freeze this worker is in.

    ``until_s`` is on this host's clock that also counts while asleep; ``until_ms``, on Redis's clock, is the same
    moment or an earlier one.
    """

    token: str
    epoch: int
    mode: str
    until_s: float
    until_ms: int


def clock_s() -> float:
    """Seconds on the clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Member:
    """One worker's membership.

    Args:
        store: this federation's Redis.
        entry: what the roster says about this worker.
        leave: called once with an exit code when the worker must not start another task.
        is_ours: whether the generation that the gate saw still is the soul's; asked where Redis alone cannot tell.
        disk: returns the signature of the code on disk.
        answer: answers a restore on another host that asks whether this one can follow.
    """

    def __init__(
        self, store: Store, entry: roster.Entry, *, leave: Callable[[int, str], None], is_ours: Callable[[], bool],
        disk: Callable[[], str], answer: Callable[[Store], None],
    ) -> None:
        self._store, self._entry = store, entry
        self._leave, self._is_ours, self._disk = leave, is_ours, disk
        self._answer, self._staging = answer, False
        self._disk_read_s = 0.0
        self._lock = threading.RLock()
        self._freeze: Freeze | None = None
        self._broken: set[str] = set()
        self._last_ack: roster.Ack | None = None
        self._born_ms: int | None = None
        self._misses = 0
        self._ahead_s = 0.0  # Redis's clock, less this process's monotonic one
        self._ticked_s = clock_s()
        self.left = False
        self.barrier: Barrier | None = None

    @property
    def name(self) -> str:
        """The worker's node name."""
        return self._entry.name

    @property
    def boot(self) -> str:
        """The id of this start of the worker."""
        return self._entry.boot

    @property
    def federation(self) -> str:
        """The federation's uuid."""
        return self._store.keys.uuid

    def tick(self) -> None:
        """Note that the listener ran: the process is awake. Ends no sleep that was too long; only a look does."""
        now_s = clock_s()
        if now_s - self._ticked_s <= roster.LICENCE_S:
            self._ticked_s = now_s

    def may_start(self) -> bool:
        """Say whether a task may start as far as sleep goes: after a long one only a look at the lease can tell."""
        if self.left:
            return False
        if clock_s() - self._ticked_s <= roster.LICENCE_S:
            return True
        try:
            self.look()
        except CheckpointError as error:
            logger.warning("Asleep too long, and the lease cannot be read: %s", error)
            return False
        self.tick()
        return not self.left and self._freeze is None

    def survey(self) -> None:
        """Read now and then which commits are on the disk. Apart from `look`, so that no ack waits for git."""
        if self._staging:
            self._answer(self._store)
        if clock_s() - self._disk_read_s > _DISK_EVERY_S:
            self._disk_read_s = clock_s()
            disk = self._disk()
            with self._lock:
                self._entry = replace(self._entry, disk=disk)

    def due_s(self) -> float:
        """Seconds until the next look is due: a heartbeat, or the freeze's end if that is sooner."""
        freeze = self._freeze
        left_s = freeze.until_s - clock_s() if freeze else roster.HEARTBEAT_S
        return max(0.0, min(roster.HEARTBEAT_S, left_s))

    def look(self) -> None:
        """Register, read the lease and act on it. Safe from any thread.

        Raises:
            CheckpointError: Redis is away; `overdue` says what that means.
        """
        with self._lock:
            seen, asked_s = self._ask()
            self._misses, self._ahead_s = 0, seen.now_ms / 1000 - time.monotonic()
            reborn = self._born_ms is not None and seen.born_ms != self._born_ms
            self._born_ms = seen.born_ms
            self._staging = seen.journal == "staging"
            freeze, standing = self._freeze, seen.lease
            restoring = freeze is not None and freeze.mode == "restore"
            still = freeze is not None and standing is not None and standing.token == freeze.token
            if seen.journal in ("closing", "switching") and not (restoring and still):
                self._go(f"a restore is {seen.journal}")
            elif seen.restored > self._entry.generation or (reborn and not self._is_ours()):
                self._go("a restore brought back another pair than the one this worker was started on")
            elif restoring and not still and not seen.thawed:
                self._go("frozen for a restore whose lease is gone without a thaw")
            elif restoring and not still and not self._is_ours():
                self._go("the restore that froze it brought back another pair")
            elif standing is not None:
                self._close(standing, seen.now_ms)
            elif freeze is not None:
                self._open("thawed")
            elif self.barrier is not None and (self.barrier.closed or self.barrier.held()) and not self.left:
                self.barrier.open()  # closed or held because it had slept, or could not look
            self._ticked_s = max(self._ticked_s, asked_s)

    def _ask(self) -> tuple[roster.Look, float]:
        """Return what a heartbeat saw, and when it was asked: a process stopped with the answer in hand has slept."""
        for _ in range(2):
            asked_s = clock_s()
            seen = roster.beat(self._store, self._described(), self._freeze.token if self._freeze else "")
            if clock_s() - asked_s < roster.LICENCE_S:
                return seen, asked_s
        raise Away("Redis answers too late to be believed", self._store.where, "see why it is slow", "redis-slow")

    def overdue(self) -> None:
        """Act on a look that failed: open when the lease has ended, or leave if it was a restore's."""
        with self._lock:
            self._misses += 1
            freeze = self._freeze
            if freeze is None:
                return
            if freeze.mode == "restore":
                if self._misses >= _RESTORE_MISSES or clock_s() >= freeze.until_s:
                    self._go("frozen for a restore, and Redis cannot be reached")
            elif clock_s() >= freeze.until_s:
                self._broken.add(freeze.token)
                self._open("its lease ended and Redis cannot be reached")

    def say(self) -> None:
        """Ack again where something changed, so that the coordinator hears of the drain at once."""
        with self._lock:
            if self._freeze is None or self._ack_now(self._freeze.token) == self._last_ack:
                return
            try:
                self._ack(self._freeze)
            except CheckpointError as error:
                logger.debug("Ack failed, the next look repeats it: %s", error)

    def connection_renewed(self) -> None:
        """Look again after the broker's connection came back, at the soul's generation too."""
        if not self._is_ours():
            self._go("a restore brought back another pair while the connection was lost")
            return
        self.look()

    def end(self) -> None:
        """Leave the roster: every child of this worker has ended."""
        with self._lock:
            self.left = True
            try:
                roster.leave(self._store, self.boot, self._broken)
            except CheckpointError as error:
                logger.warning("Could not leave the roster; this worker will be proven gone instead: %s", error)

    @property
    def frozen(self) -> bool:
        """Whether the barrier is closed by a freeze."""
        return self._freeze is not None

    def _close(self, lease: LeaseFacts, now_ms: int) -> None:
        changed = self._freeze is None or self._freeze.token != lease.token
        closing = self.barrier is not None and not self.barrier.closed
        if self.barrier is not None and closing:
            self.barrier.close(wake=False)
        # Before the ack, whose answer may be lost; and after the heartbeat's answer, so never too early.
        self._freeze = Freeze(lease.token, lease.epoch, lease.mode, until_s=clock_s() + lease.expires_in_ms / 1000,
                              until_ms=now_ms + lease.expires_in_ms)
        forgotten = self.barrier.tokens.take_failed() if self.barrier is not None else []
        if forgotten:
            requests.forget_parked(self._store, forgotten)
        try:
            self._ack(self._freeze)
        finally:
            if self.barrier is not None and closing:
                self.barrier.wake()
        if changed:
            logger.info("Frozen: %s", lease.reason or lease.mode,
                        extra={"event": "worker.frozen", "epoch": lease.epoch})

    def _ack(self, freeze: Freeze) -> None:
        what = self._ack_now(freeze.token)
        roster.ack(self._store, freeze.epoch, freeze.token, self.boot, freeze.until_ms, what)
        self._last_ack = what

    def _ack_now(self, token: str) -> roster.Ack:
        running = self.barrier.tokens.running() if self.barrier is not None else []
        return roster.Ack(
            in_flight=tuple(one.task_id for one in running if not one.exempt),
            tasks={one.task_id: one.task for one in running},
            exempt=tuple(sorted({one.task for one in running if one.exempt})),
            broken=token in self._broken,
            since_ms={one.task_id: round((one.taken_s + self._ahead_s) * 1000) for one in running},
        )

    def _open(self, why: str) -> None:
        self._freeze, self._last_ack = None, None
        logger.info("Thawed: %s", why, extra={"event": "worker.thawed"})
        if self.barrier is not None and not self.left:
            self.barrier.open()

    def _go(self, why: str) -> None:
        if self.barrier is not None:
            self.barrier.close()
        if not self.left:
            self.left = True
            self._leave(EXIT_AGAIN, why)

    def _described(self) -> roster.Entry:
        if self.barrier is None:
            return self._entry
        running = self.barrier.tokens.running()
        state = "frozen" if self._freeze and not running else "draining" if self._freeze else "thawed"
        return replace(self._entry, state=state, in_flight=len(running))
