"""The coordinator's side of a freeze: roll call, drain, the last transaction, thaw."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lych_checkpoint.errors import CheckpointError, FreezeError, Refused
from lych_checkpoint.lease import lease, requests, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.lease.gone import gone
from lych_checkpoint.lease.renewal import Renewal
from lych_checkpoint.manifest import FreezeFacts, Window
from lych_checkpoint.process import Identity

logger = logging.getLogger(__name__)

#: Rings the control bell: what happened, and in which epoch.
Ring = Callable[[str, int], None]
#: Mode of a freeze that a person began, for a fixed time.
MAINTENANCE = "maintenance"
CHECKPOINT = "checkpoint"
RESTORE = "restore"
#: How long one blocking wait for an ack lasts, before the roster is looked at again.
_WAIT_S = 0.1
#: How often a long wait says for what.
_TELL_EVERY_S = 5.0
#: The plugin's own bell comes first. The control bell follows when all have acked, or at the latest after so long: on
#: every worker it wakes the main loop, which would compete with the acks.
_SECOND_BELL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a freeze is to be: its mode and its patience, in seconds; an endless one with the drain is infinite.

    ``through`` are the tasks that may run on, by the boot id of their worker and their own id, for a broker may
    deliver one task to two workers.
    """

    mode: str
    reason: str
    lease_s: float
    ack_timeout_s: float
    drain_timeout_s: float
    gone_after_s: float
    lowest_epoch: int = 0
    through: frozenset[tuple[str, str]] = frozenset()


class Freeze:
    """A freeze in force. Made by `frozen`; usable until that block ends."""

    def __init__(self, store: Store, terms: Terms, ring: Ring, token: str, epoch: int, began_ms: int) -> None:
        self._store, self._terms, self._ring, self._rung = store, terms, ring, False
        self.token, self.epoch, self.began_ms = token, epoch, began_ms
        self._began_s = time.monotonic()
        self._acked_s = self._drained_s = self._captured_s = self._began_s
        self._drained_ms = began_ms
        self._gone: dict[str, str] = {}
        self._exempt: set[str] = set()
        self._entries: dict[str, roster.Entry] = {}
        self._confirmed_ms = self._proven_ms = 0

    def wait_for_acks(self) -> None:
        """Return when every worker has closed its barrier, with the control bell rung.

        Raises:
            FreezeError: one did not in time; it is named (code ``no-ack``).
        """
        def missing(acks: dict[str, roster.Ack]) -> list[str]:
            return [f"{self._entries[boot].name} did not ack" for boot in self._expected() if boot not in acks]

        self._wait(missing, self._terms.ack_timeout_s, "no-ack", "see whether that worker lives, or "
                   "`lych-checkpoint status`")
        self._acked_s = time.monotonic()
        self._ring_once()

    def drain(self) -> None:
        """Return when every task that had started is done, parked and exempt ones aside.

        Raises:
            FreezeError: one is still running after the drain's time; task, id, age and worker are named.
        """
        def running(acks: dict[str, roster.Ack]) -> list[str]:
            parked, now_ms = requests.parked(self._store, self.epoch), self._store.now_ms()
            lines = []
            for boot in self._expected():
                ack = acks.get(boot)
                if ack is None:
                    lines.append(f"{self._entries[boot].name} did not ack")
                    continue
                self._exempt.update(ack.exempt)
                lines += [
                    f"{ack.tasks.get(one, 'task')} [{one}] has run for "
                    f"{max(0, now_ms - ack.since_ms.get(one, now_ms)) / 1000:.1f} s on "
                    f"{self._entries[boot].name} and did not end"
                    for one in ack.in_flight
                    if (boot, one) not in self._terms.through and parked.get(one, {}).get("boot") != boot
                ]
            return lines

        self._say("draining")
        self._wait(running, self._terms.drain_timeout_s, "no-drain",
                   "wait for it, raise LYCH_DRAIN_TIMEOUT_S, mark it checkpoint_exempt, or call safepoint() in it")
        self._drained_s = time.monotonic()
        self._drained_ms = self._say("frozen")

    def check_one_body(self) -> None:
        """Make sure that all workers imported the same code.

        Raises:
            Refused: they did not: no one body belongs to what they did to the data (code ``loaded-differs``).
        """
        loaded: dict[str, str] = {}
        for boot in self._expected():
            loaded.setdefault(self._entries[boot].loaded, self._entries[boot].name)
        if len(loaded) > 1:
            raise Refused(f"{' and '.join(sorted(loaded.values()))} have imported different code", "workers",
                          "restart the workers, then try again", "loaded-differs")

    def confirm(self) -> None:
        """End the window: one transaction that finds the lease ours and every ack still good.

        Raises:
            FreezeError: it is not so; nothing taken in this freeze may be sealed (code ``freeze-broken``).
        """
        self._captured_s = time.monotonic()
        self._confirmed_ms, self._proven_ms, problems = roster.confirm(
            self._store, self.token, self.epoch, set(self._gone), self._terms.through)
        if problems:
            names = {boot: entry.name for boot, entry in roster.entries(self._store).items()}
            boot, _, what = problems[0].partition(": ")
            raise FreezeError(f"the freeze did not hold: {names.get(boot, boot)}: {what}", self._store.where,
                              "try again", "freeze-broken")

    def proven_until(self, thawed_ms: int, *, ours: bool) -> int:
        """Return until when this freeze is proven, in ms.

        That is the thaw, unless this process was too slow between `confirm` and its thaw: then a worker may have
        opened by its lease's end, or somebody else thawed.
        """
        return min(thawed_ms, self._proven_ms) if ours else self._confirmed_ms

    def facts_so_far(self) -> FreezeFacts:
        """Return the facts of a freeze that is still in force and was confirmed; its thaw counts as that moment."""
        now_s = time.monotonic()
        return self.facts(self._confirmed_ms, now_s, now_s)

    def facts(self, thawed_ms: int, thawed_s: float, thaw_began_s: float) -> FreezeFacts:
        """Return what the manifest keeps of this freeze."""
        expected = [self._entries[boot] for boot in self._expected()]
        return FreezeFacts(
            epoch=self.epoch, frozen_at=self._drained_ms / 1000, thawed_at=thawed_ms / 1000,
            workers=tuple(sorted(entry.name for entry in expected)), exempt=tuple(sorted(self._exempt)),
            gone=tuple(sorted(self._gone.values())), loaded=next((entry.loaded for entry in expected), ""),
            window=Window(
                hold_ms=_ms(self._began_s, thawed_s), ack_ms=_ms(self._began_s, self._acked_s),
                drain_ms=_ms(self._acked_s, self._drained_s), capture_ms=_ms(self._drained_s, self._captured_s),
                thaw_ms=_ms(thaw_began_s, thawed_s),
            ),
        )

    def _wait(self, open_points: Callable[[dict[str, roster.Ack]], list[str]], patience_s: float, code: str,
              mend: str) -> None:
        began_s = told_s = time.monotonic()
        end_s, points, woken = began_s + patience_s, list[str](), False
        while True:
            late = time.monotonic() >= end_s
            # What all say is read only when all have spoken, of which the last wakes us: read at each ack, it would
            # grow with their square.
            if late or woken or not roster.silent(self._store, self.epoch) - self._gone.keys():
                self._entries, acks = roster.call(self._store, self.epoch)
                points = open_points(acks)
                if not points:
                    return
                if late:
                    more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
                    raise FreezeError(f"{points[0]} within {patience_s:g} s{more}", "workers", mend, code)
            if time.monotonic() - told_s > _TELL_EVERY_S:
                told_s = time.monotonic()
                self._say("")  # where the lease is lost nobody acks any more, and an endless wait would not end
                logger.info("Waiting for %d s: %s", told_s - began_s, "; ".join(points) or "acks",
                            extra={"event": "freeze.waiting"})
            woken = roster.woken(self._store, self.epoch, _WAIT_S if self._rung else _SECOND_BELL_S)
            if not woken:
                self._ring_once()
                self._entries = roster.entries(self._store)
                self._bury()

    def _ring_once(self) -> None:
        if not self._rung:
            self._rung = True
            self._ring("freeze", self.epoch)

    def _expected(self) -> list[str]:
        return [boot for boot in self._entries if boot not in self._gone]

    def _bury(self) -> None:
        """Note the workers that are proven gone; they are waited for no longer."""
        for boot, why in gone(self._store, self._entries, self._terms.gone_after_s).items():
            self._gone[boot] = why
            logger.warning("Worker is gone: %s", why, extra={"event": "freeze.gone"})

    def keep(self, for_s: float) -> None:
        """Let the freeze last ``for_s`` seconds from now, whether this process lives or not.

        Raises:
            FreezeError: the lease is lost.
        """
        self._say("frozen", for_s)

    def _say(self, phase: str, lease_s: float = 0.0) -> int:
        at_ms = lease.renew(self._store, self.token, lease_s or self._terms.lease_s, phase)
        if not at_ms:
            raise FreezeError("the lease was lost while working", self._store.where, "try again", "freeze-broken")
        return at_ms


@contextmanager
def frozen(store: Store, terms: Terms, ring: Ring) -> Iterator[Freeze]:
    """Freeze all workers for the body of the `with`; its end thaws, whatever happened.

    The body calls `wait_for_acks` and `drain`, does its work, and calls `confirm` before it relies on the result.
    If the thaw itself fails, that is noted on the first error, and the lease ends the freeze.
    """
    with thawing(store, terms, ring) as (freeze, thaw):
        yield freeze
        thaw()


@contextmanager
def thawing(store: Store, terms: Terms, ring: Ring) -> Iterator[tuple[Freeze, Callable[[], FreezeFacts]]]:
    """Like `frozen`, but gives the thaw too, for a body that has work left which needs no freeze.

    Maintenance mode in force is used as it is and left in force.
    """
    joined, trusted_in_s = False, 0.0
    try:
        taken = lease.take(store, mode=terms.mode, reason=terms.reason, lease_s=terms.lease_s,
                           lowest_epoch=terms.lowest_epoch, coordinator=coordinator())
    except FreezeError:
        # A restore does not join: workers of a freeze that fails open would wake in the middle of it.
        standing = lease.read(store) if terms.mode == CHECKPOINT else None
        if standing is None or standing.mode != MAINTENANCE:
            raise
        joined, token, epoch, began_ms = True, standing.token, standing.epoch, store.now_ms()
    else:
        token, epoch, began_ms = taken.token, taken.epoch, taken.at_ms
        # Counted from after the lease: emptied later, Redis loses the lease too, and nothing is confirmed.
        trusted_in_s = roster.TRUST_S - (taken.at_ms - taken.born_ms) / 1000
    freeze = Freeze(store, terms, _unheard if joined else ring, token, epoch, began_ms)
    renewing = Renewal(store, token, terms.lease_s)
    thawed: list[FreezeFacts] = []

    def thaw() -> FreezeFacts:
        if not thawed:
            began_s = time.monotonic()
            renewing.stop()
            ours, at_ms = _still_standing(store, token) if joined else lease.drop(store, token)
            thawed.append(freeze.facts(freeze.proven_until(at_ms, ours=ours), time.monotonic(), began_s))
            if not joined:
                ring("thaw", epoch)
        return thawed[0]

    try:
        if trusted_in_s > 0:
            time.sleep(min(trusted_in_s, roster.TRUST_S))
        yield freeze, thaw
    except BaseException as error:
        try:
            thaw()
        except CheckpointError as second:
            error.add_note(f"the thaw failed as well, the lease ends within {terms.lease_s:g} s: {second}")
        raise
    else:
        thaw()


def _unheard(_act: str, _epoch: int) -> None:
    """Ring nothing: whoever froze has rung, and thaws."""


def _still_standing(store: Store, token: str) -> tuple[bool, int]:
    at_ms, standing = store.now_ms(), lease.read(store)
    return standing is not None and standing.token == token, at_ms


def coordinator() -> dict[str, str | int]:
    """Return what the lease says about who froze."""
    identity = Identity.mine()
    return {"node": identity.host, "pid": identity.pid}


def _ms(began_s: float, ended_s: float) -> float:
    return round((ended_s - began_s) * 1000, 3)
