"""One kill after another: restore, kill, look through the gate, recover, compare. Old or new, never mixed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lych_checkpoint import gate, journal, restore
from lych_checkpoint.errors import Away, CheckpointError, GateUnsure
from ops.kills.ground import Ground, Pair
from ops.kills.point import STEPS, Point, Watch, Who
from ops.servers.child import ServerError

_RESTORE_S = 60.0
_WHO: tuple[Who, ...] = ("alone", "group")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kill came to: ``pair`` is old, new or mixed; ``wrong`` says what else was not as it must be."""

    driver: str
    point: Point
    pair: str
    wrong: str

    @property
    def good(self) -> bool:
        """Whether all is as it must be."""
        return self.pair in ("old", "new") and not self.wrong


def points(events: dict[str, int], chance: random.Random) -> list[Point]:
    """Return every kill of the matrix for a restore that has these events in its steps."""
    found = []
    for step in STEPS:
        for who in _WHO:
            found += [Point(step, "before", who), Point(step, "after", who)]
            if events.get(step):
                found.append(Point(step, "in", who, chance.randrange(events[step])))
    return found


def count_events(ground: Ground) -> dict[str, int]:
    """Let one restore through and return how many events each of its steps has.

    Raises:
        ServerError: it failed, or passed a step by: then the matrix would speak of steps that there are not.
    """
    ground.change()
    read_end, write_end = os.pipe()

    def tell(watch: Watch) -> None:
        os.write(write_end, json.dumps([watch.events, sorted({*STEPS} - {*watch.seen})]).encode())

    status = _restore(ground, Watch(None), tell)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    if status or not said:
        raise ServerError(f"a restore that nobody kills ended with {status}")
    events, missed = json.loads(said)
    if missed:
        raise ServerError(f"the restore has no such steps: {', '.join(missed)}")
    if ground.pair() != ground.sealed:
        raise ServerError("a restore that nobody kills does not give back what was sealed")
    return dict(events)


def run(ground: Ground, some: list[Point], chance: random.Random) -> Iterator[Outcome]:
    """Kill at each of these points and give what came of it."""
    for point in some:
        ground.change()
        old = ground.pair()
        status = _restore(ground, Watch(point, chance.random()), lambda _: None)
        wrong = "" if status == -signal.SIGKILL else f"the restore was not killed there, but ended with {status}"
        wrong = wrong or _look(ground, old)
        try:
            restore.recover(ground.open())
            pair = _name(ground.pair(), old, ground.sealed)
            wrong = wrong or _check(ground)
        except CheckpointError as error:
            pair, wrong = "none", f"recover: {error}"
        yield Outcome(ground.driver, point, pair, wrong)
        if pair == "none":
            return  # what comes after it would say nothing
        ground.forget_safety()


def _restore(ground: Ground, watch: Watch, after: Callable[[Watch], None]) -> int:
    """Restore in a forked child, in a process group of its own; return its status, negative for a signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setpgid(0, 0)
            federation = ground.open()
            watch.start()
            restore.restore(federation, ground.checkpoint)
            after(watch)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    deadline_s = time.monotonic() + _RESTORE_S
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.005)


def _look(ground: Ground, old: Pair) -> str:
    """Ask the gate before anybody recovers: it says 75, or what it lets in is a whole pair."""
    try:
        gate.check(ground.open())
    except (GateUnsure, Away):
        return ""
    except CheckpointError as error:
        return f"the gate said {error.exit_code}: {error}"
    pair = _name(ground.pair(), old, ground.sealed)
    return "" if pair != "mixed" else "the gate let a mixed pair in"


def _check(ground: Ground) -> str:
    """Return what is wrong after a recover, if anything."""
    federation = ground.open()
    report = gate.check(federation)
    if report.verdict != "aligned":
        return f"the gate says {report.verdict} after recover"
    if journal.read(federation.vault) is not None:
        return "the journal is still open"
    if restore.recover(ground.open()) != {"recovered": None}:
        return "a second recover found something to do"
    left = [path.name for path in ground.root.glob(".lych-stage/*") if path.name != "rebirth"]
    if left:
        return f"{', '.join(left)} is left in .lych-stage"
    if any("outcome" not in json.loads(note.read_bytes()) for note in ground.vault.glob("notes/restore-*.json")):
        return "a journal's record does not say how it ended"
    return ""


def _name(pair: Pair, old: Pair, new: Pair) -> str:
    return "old" if pair == old else "new" if pair == new else "mixed"
