"""Freeze on every pool, over every broker, with early and late acknowledgement: `python -m ops.matrix`."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lych_checkpoint.errors import CheckpointError
from ops.matrix import run
from ops.matrix.cells import Cell, every, pairwise
from ops.matrix.ground import Ground, raised
from ops.matrix.run import Outcome
from ops.servers.child import ServerError

_DOCUMENT = Path(__file__).parents[2] / "docs" / "matrix.md"
_COLUMNS = ("pool", "broker", "ack", "ran before", "frozen s", "freeze ms", "ran in it", "once", "of", "twice",
            "out of order", "all done after s", "")
_PAIRWISE_CELLS = 8


def main() -> int:
    """Run the cells asked for; 1 where any was wrong."""
    parser = argparse.ArgumentParser(prog="python -m ops.matrix", description=__doc__)
    parser.add_argument("--cells", type=int, default=0, help="only the first N")
    parser.add_argument("--only", default="", help="only cells whose name contains this")
    parser.add_argument("--pairwise", action="store_true", help=f"{_PAIRWISE_CELLS} cells that pair most values")
    parser.add_argument("--seed", type=int, default=1, help="which pairwise choice")
    parser.add_argument("--write", action="store_true", help=f"write {_DOCUMENT.name}")
    asked = parser.parse_args()
    cells = pairwise(_PAIRWISE_CELLS, asked.seed) if asked.pairwise else every()
    cells = [cell for cell in cells if asked.only in cell.name]
    cells = cells[:asked.cells or None]
    began_s = time.monotonic()
    try:
        with raised(rabbit=any(cell.broker != "redis" for cell in cells)) as ground:
            outcomes = [_run(ground, cell) for cell in cells]
            failed = [f"{one.cell}: {', '.join(one.faults)}" for one in outcomes if one.faults]
            if failed:
                raise ServerError("\n".join([*failed, f"records and logs are in {ground.home}"]))
    except (ServerError, CheckpointError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    took_s = time.monotonic() - began_s
    print(f"matrix: {len(outcomes)} cells in {took_s:.0f} s, nothing wrong")
    if asked.write:
        _DOCUMENT.write_text(_page(outcomes, took_s))
    return 0


def _run(ground: Ground, cell: Cell) -> Outcome:
    began_s = time.monotonic()
    outcome = run.run(ground, cell)
    print(f"{_row(outcome)} {time.monotonic() - began_s:.0f} s", flush=True)
    return outcome


def _row(one: Outcome) -> str:
    values = (
        one.cell.pool, one.cell.broker, one.cell.ack, one.before, f"{one.frozen_s:.1f}", f"{one.freeze_ms:.0f}",
        one.in_freeze, one.once, one.expected, one.twice, "" if one.reordered is None else one.reordered,
        f"{one.thawed_in_s:.1f}", ", ".join(one.faults) or "right",
    )
    return f"| {' | '.join(map(str, values))} |"


def _page(outcomes: list[Outcome], took_s: float) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "gevent", "eventlet"))
    made = (f"`make matrix` on {time.strftime('%Y-%m-%d', time.gmtime())} at commit {commit.stdout.strip()}: "
            f"{len(outcomes)} cells in {took_s:.0f} s. Python {platform.python_version()}, {versions}.")
    what = (f"Each cell: two workers; {run.BEFORE} tasks of 50 ms and {run.BEFORE_ETA} ETA tasks before the freeze, "
            f"some running, some prefetched; {run.IMMEDIATE} immediate and {run.ETA} ETA tasks published in it; the "
            "thaw. Counted from stamps that the tasks' own bodies wrote. \"freeze ms\" is until every running task "
            "had ended; \"out of order\" is counted where Celery keeps a queue's order: one solo worker on it.")
    rows = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *map(_row, outcomes)]
    return "\n".join(["# A freeze on every pool and broker", "", made, "", what, "", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
