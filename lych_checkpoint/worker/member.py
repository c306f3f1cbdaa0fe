"""A worker as a member of its federation: it registers, reads the lease, closes and opens its barrier, and leaves.

`look` is the whole protocol: one heartbeat script, then one decision. Bells only make it happen sooner. A freeze for
a checkpoint fails open (I3); one for a restore fails closed: without an explicit thaw the worker leaves with 75.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from lych_checkpoint.errors import Away, CheckpointError
from lych_checkpoint.lease import requests, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.lease.lease import LeaseFacts, News
from lych_checkpoint.worker.barrier import Barrier
from lych_checkpoint.worker.honoured import Freeze, clock_s

logger = logging.getLogger(__name__)

#: sysexits.h EX_TEMPFAIL: start me again.
EXIT_AGAIN = 75
#: Failed looks after which a worker frozen for a restore gives up.
_RESTORE_MISSES = 2
#: A freeze that stands at the second look, a heartbeat later, is worth to be told and to stop fetching for. Sooner,
#: that would compete with other workers' acks, and a short freeze would spend longer on it than on the capture.
_LOOKS_OF_A_LONG_ONE = 2
#: After an ack that the bell alone led to, the look follows when the other workers' acks have had their turn.
_LOOK_AFTER_ACK_S = 0.05
#: How often a worker reads which commits are on its disk, for `status`.
_DISK_EVERY_S = 5.0


class Member:
    """One worker's membership.

    Args:
        store: this federation's Redis.
        entry: what the roster says about this worker.
        leave: called once with an exit code when the worker must not start another task.
        doubt: why a restore may have come since the gate, empty if none did; asked where Redis alone cannot tell.
        disk: returns the signature of the code on disk.
        answer: answers a restore on another host that asks whether this one can follow.
    """

    def __init__(
        self, store: Store, entry: roster.Entry, *, leave: Callable[[int, str], None], doubt: Callable[[], str],
        disk: Callable[[], str], answer: Callable[[Store], None],
    ) -> None:
        self._store, self._entry = store, entry
        self._leave, self._doubt, self._disk = leave, doubt, disk
        self._answer, self._staging = answer, False
        self._disk_read_s = 0.0
        self._lock = threading.RLock()
        self._freeze: Freeze | None = None
        self._broken: set[str] = set()
        self._last_ack: roster.Ack | None = None
        self._looks = 0  # in this freeze
        self._unseen = False  # this freeze was heard of only
        self._born_ms: int | None = None
        self._misses = 0
        self._ahead_s = 0.0  # Redis's clock, less this host's that counts while asleep too
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
        freeze, regular_s = self._freeze, _LOOK_AFTER_ACK_S if self._unseen else roster.HEARTBEAT_S
        left_s = freeze.until_s - clock_s() if freeze else regular_s
        return max(0.0, min(regular_s, left_s))

    def hear(self, message: str) -> None:
        """Act on the plugin's own bell: obey and ack the freeze that it tells of, or look.

        The bell counts as a look at the moment when the lease was written, and no older than a look's answer may be.
        An ack for a lease that is gone already is not written; the look that follows finds that out.

        Raises:
            CheckpointError: Redis is away; `overdue` says what that means.
        """
        news = News.of(message)
        with self._lock:
            fresh = news is not None and abs(self._redis_s() - news.at_ms / 1000) < roster.LICENCE_S
            if news and fresh and self._freeze is None and self.barrier is not None and not self.left:
                self.barrier.close(wake=False)
                self._freeze, self._unseen = Freeze.of(news, news.at_ms), True
                self._ack()
            else:
                self.look()

    def look(self) -> None:
        """Register, ack the freeze this worker is in, read the lease and act on it. Safe from any thread.

        Raises:
            CheckpointError: Redis is away; `overdue` says what that means.
        """
        with self._lock:
            seen, asked_s = self._ask()
            self._misses, self._unseen, self._ahead_s = 0, False, seen.now_ms / 1000 - clock_s()
            reborn = self._born_ms is not None and seen.born_ms != self._born_ms
            self._born_ms = seen.born_ms
            self._staging = seen.journal == "staging"
            freeze, standing = self._freeze, seen.lease
            restoring = freeze is not None and freeze.mode == "restore"
            still = freeze is not None and standing is not None and standing.token == freeze.token
            if seen.journal in ("closing", "switching") and not (restoring and still):
                self.go(f"a restore is {seen.journal}")
            elif seen.restored > self._entry.era:
                self.go("a restore brought back another pair than the one this worker was started on")
            elif reborn and (why := self._doubt()):
                self.go(f"Redis was emptied: {why}")
            elif restoring and not still and not seen.thawed:
                self.go("frozen for a restore whose lease is gone without a thaw")
            elif restoring and not still and (why := self._doubt()):
                self.go(f"thawed after a restore: {why}")
            elif standing is not None:
                self._close(standing, seen.now_ms, acked=still)
            elif freeze is not None:
                self._open("thawed")
            elif self.barrier is not None and (self.barrier.closed or self.barrier.held()) and not self.left:
                self.barrier.open()  # closed or held because it had slept, or could not look
            self._ticked_s = max(self._ticked_s, asked_s)

    def _ask(self) -> tuple[roster.Look, float]:
        """Return what a heartbeat saw, and when it was asked: a process stopped with the answer in hand has slept."""
        for _ in range(2):
            asked_s = clock_s()
            claim = self._claim(self._freeze) if self._freeze else None
            seen = roster.beat(self._store, self._described(), claim)
            self._last_ack = claim.ack if claim else None
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
                    self.go("frozen for a restore, and Redis cannot be reached")
            elif clock_s() >= freeze.until_s:
                self._broken.add(freeze.token)
                self._open("its lease ended and Redis cannot be reached")

    def heard(self, act: str, epoch: int) -> bool:
        """Say whether a bell's news are known: frozen in that epoch or a later one, or not frozen in it any more."""
        freeze = self._freeze
        frozen_in = freeze.epoch if freeze else 0
        return frozen_in >= epoch > 0 if act == "freeze" else frozen_in != epoch > 0

    def say(self) -> None:
        """Ack again where something changed, so that the coordinator hears of the drain at once."""
        with self._lock:
            if self._freeze is None or self._ack_now(self._freeze.token) == self._last_ack:
                return
            try:
                self._ack()
            except CheckpointError as error:
                logger.debug("Ack failed, the next look repeats it: %s", error)

    def connection_renewed(self) -> None:
        """Look again after the broker's connection came back, at the soul's generation too."""
        if why := self._doubt():
            self.go(f"the connection was lost: {why}")
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

    def _close(self, lease: LeaseFacts, now_ms: int, *, acked: bool) -> None:
        if self.barrier is not None and not self.barrier.closed:
            self.barrier.close(wake=False)
        self._looks += 1
        if self._looks == _LOOKS_OF_A_LONG_ONE:
            logger.info("Frozen: %s", lease.reason or lease.mode,
                        extra={"event": "worker.frozen", "epoch": lease.epoch})
            if self.barrier is not None:
                self.barrier.wake()
        # Before the ack, whose answer may be lost; and after the heartbeat's answer, so never too early.
        self._freeze = Freeze.of(lease, now_ms)
        if not acked:
            self._ack()

    def _ack(self) -> None:
        assert self._freeze is not None  # noqa: S101 - the callers saw it, under the lock
        claim = self._claim(self._freeze)
        roster.ack(self._store, self.boot, claim)
        self._last_ack = claim.ack

    def _claim(self, freeze: Freeze) -> roster.Claim:
        forgotten = self.barrier.tokens.take_failed() if self.barrier is not None else []
        if forgotten:
            requests.forget_parked(self._store, forgotten)
        return roster.Claim(token=freeze.token, epoch=freeze.epoch, until_ms=freeze.until_ms,
                            ack=self._ack_now(freeze.token))

    def _ack_now(self, token: str) -> roster.Ack:
        running = self.barrier.tokens.running() if self.barrier is not None else []
        ahead_s = self._redis_s() - time.monotonic()
        return roster.Ack(
            in_flight=tuple(one.task_id for one in running if not one.exempt),
            tasks={one.task_id: one.task for one in running},
            exempt=tuple(sorted({one.task for one in running if one.exempt})),
            broken=token in self._broken,
            since_ms={one.task_id: round((one.taken_s + ahead_s) * 1000) for one in running},
        )

    def _redis_s(self) -> float:
        """Return Redis's clock by the last look; late by that look's answer, so by less than a licence."""
        return clock_s() + self._ahead_s

    def _open(self, why: str) -> None:
        short = self._looks < _LOOKS_OF_A_LONG_ONE
        self._freeze, self._last_ack, self._looks = None, None, 0
        if self.barrier is not None and not self.left:
            self.barrier.open()
        logger.info("Frozen and thawed: %s" if short else "Thawed: %s", why, extra={"event": "worker.thawed"})

    def go(self, why: str) -> None:
        """Start nothing more and leave with 75. Safe from any thread."""
        if self.barrier is not None:
            self.barrier.close()
        if not self.left:
            self.left = True
            self._leave(EXIT_AGAIN, why)

    def _described(self) -> roster.Entry:
        if self.barrier is None:
            return self._entry
        running = self.barrier.tokens.running()
        exempt = sum(one.exempt for one in running)
        state = "thawed" if not self._freeze else "draining" if len(running) > exempt else "frozen"
        return replace(self._entry, state=state, in_flight=len(running), exempt=exempt)
