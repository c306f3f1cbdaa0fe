"""One kill after another: act, kill, look through the gate, recover, compare. Old or new, never mixed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from lych_checkpoint import gate, journal, restore
from lych_checkpoint.errors import Away, CheckpointError, GateUnsure
from ops.kills.acts import ACTS, Act
from ops.kills.ground import Ground, Pair
from ops.kills.point import Point, Watch, Who
from ops.servers.child import ServerError

_ACT_S = 60.0
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


def points(ground: Ground, chance: random.Random, acts: Collection[str]) -> list[Point]:
    """Return every kill of the matrix: of a restore all, of the other acts in and after each step, by chance whom.

    Raises:
        ServerError: an act that nobody kills fails.
    """
    found = []
    for name, act in ((name, act) for name, act in ACTS.items() if name in acts):
        events = count_events(ground, name, act)
        for step in act.steps:
            for who in _WHO if name == "restore" else (chance.choice(_WHO),):
                found.append(Point(name, step, "after", who))
                if name == "restore":
                    found.append(Point(name, step, "before", who))
                if events.get(step):
                    found.append(Point(name, step, "in", who, chance.randrange(events[step])))
    return found


def count_events(ground: Ground, name: str, act: Act) -> dict[str, int]:
    """Let an act through and return how many events each of its steps has.

    Raises:
        ServerError: it failed, or passed a step by: then the matrix would speak of steps that there are not.
    """
    ground.change()
    old = ground.pair()
    read_end, write_end = os.pipe()

    def tell(watch: Watch) -> None:
        os.write(write_end, json.dumps([watch.events, sorted({*act.steps} - {*watch.seen})]).encode())

    _prepare(ground, act)
    status = _act(ground, act, Watch(None, spoil=ground.spoil if act.spoilt else None), tell)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    if status or not said:
        raise ServerError(f"the act {name!r} that nobody kills ended with {status}")
    events, missed = json.loads(said)
    if missed:
        raise ServerError(f"the act {name!r} has no such steps: {', '.join(missed)}")
    if _name(ground.pair(), old, ground.sealed) != act.ends:
        raise ServerError(f"the act {name!r} that nobody kills does not end with the {act.ends} pair")
    ground.forget_safety()
    return dict(events)


def run(ground: Ground, some: list[Point], chance: random.Random) -> Iterator[Outcome]:
    """Kill at each of these points and give what came of it."""
    for point in some:
        ground.change()
        old, act = ground.pair(), ACTS[point.act]
        _prepare(ground, act)
        watch = Watch(point, chance.random(), ground.spoil if act.spoilt else None)
        status = _act(ground, act, watch, lambda _: None)
        wrong = "" if status == -signal.SIGKILL else f"it was not killed there, but ended with {status}"
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


def _prepare(ground: Ground, act: Act) -> None:
    """Leave the restore that a recover needs."""
    if act.first is not None:
        _act(ground, ACTS[act.first.act], Watch(act.first), lambda _: None)


def _act(ground: Ground, act: Act, watch: Watch, after: Callable[[Watch], None]) -> int:
    """Act in a forked child, in a process group of its own; return its status, negative for a signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setpgid(0, 0)
            watch.start()
            act.run(ground)
            after(watch)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    deadline_s = time.monotonic() + _ACT_S
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
