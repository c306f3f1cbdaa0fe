"""One run of chaos: rounds of freezes and faults, then calm, then the verdict over the records."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from ops.chaos import checker, faults
from ops.chaos.brokers import connections_lose_messages
from ops.chaos.ground import Ground, Load, Watch, kill_group
from ops.servers.child import spawn

_RATE = 15.0
#: Messages that a dead worker held come back when kombu's visibility timeout (10 s) has passed.
_SETTLE_S = 60
_ROUND_S = 25
_CALM_S = 40


class Run:
    """One run: rounds of one freeze and up to two faults each, every act in a log beside the records."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self._ground = ground
        self._chance = random.Random(seed)
        self._began_s = time.time()
        self._watch = Watch(ground.leases.url, ground.uuid)
        self._load = Load(ground, _RATE)
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
        for at_s, act in sorted(acts, key=lambda one: one[0]):
            time.sleep(max(0.0, at_s - time.monotonic()))
            act()
        end_s = time.monotonic() + _ROUND_S  # from the last act, for a broker may take long to start
        while coordinator.poll() is None:
            if time.monotonic() > end_s:
                self.odd.append(f"round {number}: the coordinator had not ended after {_ROUND_S} s")
                coordinator.kill()
                coordinator.wait()
            time.sleep(0.02)
        self._note(f"round {number}: ended with {coordinator.returncode}")
        self._raise_the_dead()
        time.sleep(self._chance.uniform(0.0, 0.8))

    def calm(self) -> None:
        """After the last fault is undone, the federation must be able to freeze again."""
        end_s = time.monotonic() + _CALM_S
        while time.monotonic() < end_s:
            self._raise_the_dead()
            coordinator = self._coordinator("freeze", 0.5, 0)
            coordinator.wait()
            self._note(f"calm: ended with {coordinator.returncode}")
            if coordinator.returncode == 0:
                return
            time.sleep(1)
        self.odd.append(f"no freeze held within {_CALM_S} s after the last fault")

    def settle(self) -> None:
        """Publish no more, wait until every message that can end has ended, and end the workers."""
        self._load.stop()
        self._note("settle")
        end_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < end_s:
            self._raise_the_dead()
            if not set(self._load.published) - {stamp.tag for stamp in self._stamps() if stamp.kind == "end"}:
                break
            time.sleep(0.5)
        else:
            self._have_all_say_where_they_are()
        self._watch.stop()
        for seat in self._ground.seats:  # nothing more is wanted of them, and an orderly end takes its time
            kill_group(seat)

    def verdict(self) -> list[str]:
        """Judge the records; returns the violations."""
        allowed = self._torn if connections_lose_messages(self._ground.kind) else 0
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
        return [*self.odd, *checker.ran_inside(stamps, windows), *checker.frozen_past(probes, leases),
                *checker.lost(self._load.published, stamps, allowed)]

    def _coordinator(self, kind: str, hold_s: float, number: int) -> subprocess.Popen[bytes]:
        argv = {
            "freeze": ["ops.chaos.coordinator", str(hold_s)],
            "create": ["lych_checkpoint", "create", "--here", "--json", "--reason", f"round {number}"],
            "task": ["celery", "-A", "ops.chaos.app", "call", "checkpoint.create"],
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

    def _have_all_say_where_they_are(self) -> None:
        """Celery writes every thread's stack into its log when it gets this signal."""
        for seat in self._ground.seats:
            if seat.process is not None and seat.runs:
                seat.process.send(signal.SIGUSR1)
        time.sleep(1)

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
