"""The faults: each begins, lasts, and is undone. Which and when comes from the seed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import redis

from ops.chaos.brokers import Node
from ops.chaos.ground import Ground, Seat, Watch, children, kill_group
from ops.servers.child import signal_pid


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to whom, and how it is undone. ``torn`` connections to the broker may each lose a message."""

    name: str
    begin: Callable[[], None]
    undo: Callable[[], None]
    torn: int = 0


def nothing() -> None:
    """Undo what needs no undoing."""


def choose(chance: random.Random, ground: Ground, watch: Watch, coordinator: subprocess.Popen[bytes]) -> Fault:
    """Return the next fault."""
    seat = chance.choice([seat for seat in ground.seats if seat.runs])
    makers = [
        lambda: _killed_worker(ground, seat), lambda: _killed_child(seat, chance),
        lambda: _stopped_worker(seat, whole=chance.random() < 0.5),
        lambda: _killed_coordinator(coordinator), lambda: _stopped_coordinator(coordinator),
        lambda: _restarted(ground, ground.leases, "leases", watch), lambda: _stopped_server(ground.leases, "leases"),
        lambda: _restarted(ground, ground.broker, "broker", watch),
        lambda: _restarted(ground, ground.broker, "broker", watch, orderly=True),
        lambda: _stopped_server(ground.broker, "broker"),
        lambda: _emptied(ground, watch),
        lambda: Fault(f"stall {seat.name} from its lease", seat.lease_wire.stall, seat.lease_wire.mend),
        lambda: Fault(f"cut {seat.name} from its lease", seat.lease_wire.cut, seat.lease_wire.mend),
        lambda: Fault(f"stall {seat.name} from the broker", seat.broker_wire.stall, seat.broker_wire.mend),
        lambda: Fault(f"cut {seat.name} from the broker", seat.broker_wire.cut, seat.broker_wire.mend, torn=1),
        lambda: _isolated(seat),
        lambda: Fault("stall the coordinator", ground.coordinator_wire.stall, ground.coordinator_wire.mend),
        lambda: Fault("cut the coordinator", ground.coordinator_wire.cut, ground.coordinator_wire.mend),
    ]
    return chance.choice(makers)()


def _killed_worker(ground: Ground, seat: Seat) -> Fault:
    def start() -> None:
        if not seat.runs:
            ground.start(seat)

    return Fault(f"kill {seat.name}", lambda: kill_group(seat), start, torn=1)


def _killed_child(seat: Seat, chance: random.Random) -> Fault:
    assert seat.process is not None
    pid = seat.process.pid

    def kill() -> None:
        found = children(pid)
        if found:
            signal_pid(chance.choice(found), signal.SIGKILL)

    return Fault(f"kill a child of {seat.name}", kill, nothing)


def _stopped_worker(seat: Seat, *, whole: bool) -> Fault:
    assert seat.process is not None
    pid = seat.process.pid

    def send(number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(pid, number)

    return Fault(f"stop {'all of ' if whole else ''}{seat.name}", lambda: send(signal.SIGSTOP),
                 lambda: send(signal.SIGCONT))


def _killed_coordinator(coordinator: subprocess.Popen[bytes]) -> Fault:
    return Fault("kill the coordinator", coordinator.kill, nothing)


def _stopped_coordinator(coordinator: subprocess.Popen[bytes]) -> Fault:
    return Fault("stop the coordinator", lambda: coordinator.send_signal(signal.SIGSTOP),
                 lambda: coordinator.send_signal(signal.SIGCONT))


def _restarted(ground: Ground, node: Node, name: str, watch: Watch, *, orderly: bool = False) -> Fault:
    def end() -> None:
        watch.look()
        if orderly and node.pid is not None:
            signal_pid(node.pid, signal.SIGCONT)  # another fault may have stopped it, and it could not end
            node.stop()
        else:
            node.kill()

    def start() -> None:
        if node.pid is None:  # two faults may have met on it
            node.start()

    return Fault(f"{'end' if orderly else 'kill'} the {name}' server", end, start,
                 torn=len(ground.seats) if node is ground.broker else 0)


def _stopped_server(node: Node, name: str) -> Fault:
    def send(number: signal.Signals) -> None:
        if node.pid is not None:
            os.kill(node.pid, number)

    return Fault(f"stop the {name}' server", lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))


def _emptied(ground: Ground, watch: Watch) -> Fault:
    def empty() -> None:
        watch.look()
        with redis.Redis.from_url(ground.leases.url, socket_timeout=1) as client:
            client.flushall()

    return Fault("empty the leases' server", empty, nothing)


def _isolated(seat: Seat) -> Fault:
    def cut() -> None:
        seat.lease_wire.cut()
        seat.broker_wire.cut()

    def mend() -> None:
        seat.lease_wire.mend()
        seat.broker_wire.mend()

    return Fault(f"cut {seat.name} from everything", cut, mend, torn=1)
