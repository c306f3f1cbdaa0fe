"""One cell: tasks before, a freeze with tasks published in it, the thaw, and what the tasks' own stamps say."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass

from lych_checkpoint import status
from ops.matrix.cells import Cell
from ops.matrix.ground import Ground, Stage
from ops.servers.child import ServerError, wait_until

BEFORE, BEFORE_ETA, IMMEDIATE, ETA = 60, 20, 2000, 100
_NAP_S = 0.05
#: The freeze lasts at least so long after the last task was published in it.
_STILL_S = 2.0
#: ETA tasks fall due between these seconds from their publishing: in the freeze and after it.
_DUE_S = (0.2, 5.0)
_PATIENCE_S = 90.0
#: A second run of a task would come within this after the last first one.
_CALM_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cell came to. ``faults`` is empty where all was right."""

    cell: Cell
    before: int
    frozen_s: float
    freeze_ms: float
    in_freeze: int
    once: int
    expected: int
    twice: int
    reordered: int | None
    thawed_in_s: float

    @property
    def faults(self) -> list[str]:
        """Return what was wrong, in words."""
        found = {
            f"{self.in_freeze} ran in the freeze": self.in_freeze,
            f"{self.expected - self.once - self.twice} did not run": self.expected - self.once - self.twice,
            f"{self.twice} ran more than once": self.twice,
            f"{self.reordered} ran out of order": self.reordered,
        }
        return [what for what, count in found.items() if count]


def run(ground: Ground, cell: Cell) -> Outcome:
    """Run one cell.

    Raises:
        ServerError: a worker did not start.
        CheckpointError: the freeze failed.
    """
    with ground.stage(cell) as stage:
        tags = iter((range(BEFORE), range(BEFORE, BEFORE + BEFORE_ETA)))
        stage.publish(next(tags), seconds=_NAP_S)
        stage.publish(next(tags), due_s=(1.5, 3.0))
        wait_until(lambda: len(stage.runs()) >= 4, timeout_s=20, else_say=lambda: f"{cell}: no task ran")
        asked_s = time.monotonic()
        status.hold(stage.federation, 120, "the matrix", stage.app)
        frozen_at, frozen_s = time.time(), time.monotonic()
        before = len(stage.runs())
        first = BEFORE + BEFORE_ETA
        stage.publish(range(first, first + IMMEDIATE))
        stage.publish(range(first + IMMEDIATE, first + IMMEDIATE + ETA), due_s=_DUE_S)
        time.sleep(_STILL_S)
        thawed_at, thawed_s = time.time(), time.monotonic()
        status.thaw(stage.federation, app=stage.app)
        expected = first + IMMEDIATE + ETA
        took_s = _wait_for_all(stage, expected, thawed_s)
        runs = stage.runs()
    counts = Counter(tag for tag, _, _ in runs)
    return Outcome(
        cell=cell, before=before, frozen_s=thawed_s - frozen_s, freeze_ms=(frozen_s - asked_s) * 1000,
        in_freeze=sum(ended > frozen_at and began < thawed_at for _, began, ended in runs),
        once=sum(count == 1 for count in counts.values()), expected=expected,
        twice=sum(count > 1 for count in counts.values()),
        reordered=_reordered(cell, [tag for tag, _, _ in runs if first <= tag < first + IMMEDIATE]),
        thawed_in_s=took_s,
    )


def _wait_for_all(stage: Stage, expected: int, since_s: float) -> float:
    try:
        wait_until(lambda: len({tag for tag, _, _ in stage.runs()}) >= expected, timeout_s=_PATIENCE_S,
                   else_say=lambda: "not all ran")
    except ServerError:
        return time.monotonic() - since_s  # the outcome counts them
    took_s = time.monotonic() - since_s
    time.sleep(_CALM_S)
    return took_s


def _reordered(cell: Cell, tags: list[int]) -> int | None:
    """Count tasks that ran after a later one of the same queue, where Celery itself keeps the order; else None."""
    if cell.pool != "solo":
        return None
    count = len(cell.queues)
    queues = [[tag for tag in tags if tag % count == rest] for rest in range(count)]
    return sum(earlier > later for queue in queues for earlier, later in itertools.pairwise(queue))
