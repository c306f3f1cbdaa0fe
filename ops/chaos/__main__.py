"""`make chaos`: random freezes under random faults. Exit 0: nothing was violated; 1: something was; 2: usage."""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from celery import Celery

from ops.chaos import checker, faults
from ops.chaos.ground import Ground, Load, Watch, raised
from ops.servers.child import ServerError, spawn

_RATE = 15.0
#: Messages that a dead worker held come back when kombu's visibility timeout (10 s) has passed.
_SETTLE_S = 60
_ROUND_S = 25


class Run:
    """One run: rounds of one freeze and up to two faults each, every act in a log beside the records."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self._ground = ground
        self._chance = random.Random(seed)
        self._began_s = time.time()
        self._watch = Watch(ground.leases.url, ground.uuid)
        self._load = Load(ground.broker.url, _RATE)
        self._client = Celery(broker=ground.broker.url)
        self._torn = 0
        self.log = ground.home / "events"
        self.odd: list[str] = []

    def prepare(self) -> None:
        """Start the workers, the watch and the load."""
        for pool in ("prefork", "threads", "solo", "gevent"):
            self._ground.start(self._ground.seat(pool, pool))
        for seat in self._ground.seats:
            assert seat.process is not None
            seat.process.wait_ready(60)
        self._watch.start()
        self._load.start()

    def round(self, number: int) -> None:
        """Let one coordinator freeze while one or two faults come and go, and see it end."""
        kind = self._chance.choice(["freeze", "freeze", "create", "task"])
        hold_s = self._chance.uniform(0.05, 2.5)
        coordinator = self._coordinator(kind, hold_s, number)
        self._note(f"round {number}: {kind} by {coordinator.pid}")
        acts: list[tuple[float, Callable[[], None]]] = []
        now_s = time.monotonic()
        for _ in range(self._chance.choice([0, 1, 1, 2, 2])):
            fault = faults.choose(self._chance, self._ground, self._watch, coordinator)
            begin_s = now_s + self._chance.uniform(0.2, 3.5)
            acts += [(begin_s, self._act("", fault.name, fault.begin)),
                     (begin_s + self._chance.uniform(0.1, 4.5), self._act("undo ", fault.name, fault.undo))]
            self._torn += fault.torn
        end_s = now_s + _ROUND_S
        for at_s, act in sorted(acts, key=lambda one: one[0]):
            time.sleep(max(0.0, at_s - time.monotonic()))
            act()
        while coordinator.poll() is None:
            if time.monotonic() > end_s:
                self.odd.append(f"round {number}: the coordinator had not ended after {_ROUND_S} s")
                coordinator.kill()
                coordinator.wait()
            time.sleep(0.02)
        self._note(f"round {number}: ended with {coordinator.returncode}")
        self._raise_the_dead()
        time.sleep(self._chance.uniform(0.0, 0.8))

    def settle(self) -> None:
        """Publish no more, and wait until every message that can end has ended."""
        self._load.stop()
        self._note("settle")
        end_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < end_s:
            self._raise_the_dead()
            if not set(self._load.published) - {stamp.tag for stamp in self._stamps() if stamp.kind == "end"}:
                break
            time.sleep(0.5)
        self._watch.stop()

    def verdict(self) -> list[str]:
        """Judge the records; returns the violations."""
        stamps = self._stamps()
        windows = [checker.Window(**json.loads(line)) for line in self._ground.lines("windows")]
        for path in sorted(self._ground.vault.glob("checkpoints/*/seal")):
            freeze = json.loads((path.parent / "manifest.json").read_text())["freeze"]
            windows.append(checker.Window(path.parent.name, freeze["frozen_at"], freeze["thawed_at"]))
        probes = [checker.Probe.read(line) for line in self._ground.lines("probes")]
        leases = self._watch.leases
        ended = len({stamp.tag for stamp in stamps if stamp.kind == "end"})
        print(f"chaos: {len(leases)} freezes, {len(windows)} sealed; {len(self._load.published)} messages, "
              f"{ended} ended, {self._torn} connections torn; {len(stamps)} stamps, {len(probes)} probes")
        found = [*self.odd, *checker.ran_inside(stamps, windows), *checker.frozen_past(probes, leases),
                 *checker.lost(self._load.published, stamps, self._torn)]
        if not windows:
            found.append("nothing was sealed, so nothing was shown: run more rounds")
        return found

    def _coordinator(self, kind: str, hold_s: float, number: int) -> subprocess.Popen[bytes]:
        argv = {
            "freeze": ["ops.chaos.coordinator", str(hold_s)],
            "create": ["lych_checkpoint", "create", "--here", "--json", "--reason", f"round {number}"],
            "task": ["celery", "-b", self._ground.broker.url, "call", "checkpoint.create"],
        }[kind]
        return spawn([sys.executable, "-m", *argv], log=self._ground.home / "coordinators.log",
                     environment=self._ground.environment)

    def _raise_the_dead(self) -> None:
        """Do what a supervisor does: start what has ended.

        Celery itself ends with 1 when kombu's Redis transport loses its connection at a bad moment.
        """
        for seat in self._ground.seats:
            if seat.process is not None and seat.process.exit_code is not None:
                code = seat.process.exit_code
                self._note(f"{seat.name} had ended with {code}")
                if code not in (75, -signal.SIGKILL) and _is_ours(seat.process.text):
                    self.odd.append(f"{seat.name} ended with {code}: {seat.process.log}")
                self._ground.start(seat)

    def _act(self, word: str, name: str, act: Callable[[], None]) -> Callable[[], None]:
        def acted() -> None:
            self._note(word + name)
            act()

        return acted

    def _note(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{time.time() - self._began_s:8.3f} {time.time():.3f} {line}\n")

    def _stamps(self) -> list[checker.Stamp]:
        return [checker.Stamp.read(line) for line in self._ground.lines("stamps")]


def _is_ours(log: str) -> bool:
    """Whether the last traceback of a worker that ended goes through the product."""
    return re.search(r'File ".*/lych_checkpoint/', log.rpartition("Unrecoverable error")[2]) is not None


def main() -> int:
    """Run, judge, tell; a run that violated something leaves its directory."""
    arguments = argparse.ArgumentParser(prog="python -m ops.chaos", description=__doc__)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments.add_argument("--rounds", type=int, default=0, help="how many freezes")
    arguments.add_argument("--minutes", type=float, default=2.0, help="or how long, where --rounds is not given")
    asked = arguments.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)
    print(f"chaos: seed {asked.seed}", flush=True)
    began_s = time.monotonic()
    try:
        with raised() as ground:
            run = Run(ground, asked.seed)
            run.prepare()
            number = 0
            while number < asked.rounds if asked.rounds else time.monotonic() - began_s < asked.minutes * 60:
                number += 1
                run.round(number)
            run.settle()
            found = run.verdict()
            if found:
                print(run.log.read_text(), file=sys.stderr)
                raise ServerError("\n".join([*found, f"seed {asked.seed}; records are in {ground.home}"]))
    except ServerError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    print(f"chaos: nothing was violated in {time.monotonic() - began_s:.0f} s")
    return 0


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
