"""What must hold whatever was done to the system, judged from records alone.

Records are what the task bodies stamped, what the workers' probes noted, what was published, and the windows of the
sealed checkpoints. Nothing here asks the product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: A manifest's times are whole milliseconds; a body that ended just before may seem to end in the window.
_ROUNDING_S = 0.002
#: I3's second.
_GRACE_S = 1.0
#: How late the kernel may run a thread on a loaded machine, and how finely leases are watched.
_SLACK_S = 0.25
#: Probes further apart than this show that the process did not run.
_GAP_S = 0.5


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a body wrote: start, step, pause, resume or end. ``run`` is one execution of the message ``tag``."""

    at: float
    kind: str
    tag: int
    run: str

    @classmethod
    def read(cls, line: str) -> Stamp:
        """Read the line that a body wrote."""
        at, kind, tag, run, _pid = line.split()
        return cls(float(at), kind, int(tag), run)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a worker said of itself."""

    at: float
    worker: str
    frozen: bool

    @classmethod
    def read(cls, line: str) -> Probe:
        """Read the line that a probe wrote."""
        at, worker, state = line.split()
        return cls(float(at), worker, state == "frozen")


@dataclass(frozen=True, slots=True)
class Window:
    """A sealed freeze: what claims that nothing ran between these Unix seconds."""

    name: str
    frozen_at: float
    thawed_at: float

    def __str__(self) -> str:
        return f"{self.name} claims [{self.frozen_at:.3f}, {self.thawed_at:.3f}]"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as Redis had it: first seen at, and the last end it was given."""

    seen_at: float
    ends_at: float


def ran_inside(stamps: Iterable[Stamp], windows: Sequence[Window]) -> list[str]:
    """Return the bodies that were at work inside a sealed window; between pause and resume a body is not at work."""
    runs: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        runs[stamp.run].append(stamp)
    found = []
    for window in windows:
        begin, end = window.frozen_at + _ROUNDING_S, window.thawed_at
        for run in runs.values():
            ordered = sorted(run, key=lambda stamp: stamp.at)
            found += [f"{window}: message {stamp.tag} stamped {stamp.kind} at {stamp.at:.6f}"
                      for stamp in ordered if begin < stamp.at < end]
            found += [f"{window}: message {one.tag} ran from {one.at:.6f} to {two.at:.6f}"
                      for one, two in pairwise(ordered)
                      if one.kind != "pause" and one.at <= begin < end <= two.at]
    return found


def frozen_past(probes: Iterable[Probe], leases: Sequence[Lease]) -> list[str]:
    """Return the workers that ran for more than a second, still frozen, after every lease they can have seen."""
    by_worker: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        by_worker[probe.worker].append(probe)
    found = []
    for worker, noted in by_worker.items():
        last_s = awake_since_s = 0.0
        for probe in sorted(noted, key=lambda one: one.at):
            if probe.at - last_s > _GAP_S:
                awake_since_s = probe.at
            last_s = probe.at
            if not probe.frozen:
                continue
            ends_s = max((lease.ends_at for lease in leases if lease.seen_at - _SLACK_S <= probe.at), default=0.0)
            if probe.at > max(ends_s, awake_since_s) + _GRACE_S + _SLACK_S:
                found.append(f"{worker} was frozen at {probe.at:.3f}; the last lease ended at {ends_s:.3f}")
                break
    return found


def lost(published: Iterable[int], stamps: Iterable[Stamp], allowed: int) -> list[str]:
    """Return the published messages that no body finished, if they are more than ``allowed``.

    kombu's Redis transport pops a message and registers it in two steps, with or without a freeze: each connection
    that is torn down may lose the one that was between them.
    """
    ended = {stamp.tag for stamp in stamps if stamp.kind == "end"}
    missing = sorted(set(published) - ended)
    if len(missing) <= allowed:
        return []
    return [f"{len(missing)} messages never ended ({allowed} torn connections may account for one each): "
            + ", ".join(map(str, missing[:20]))]
