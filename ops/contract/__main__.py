"""Every driver on every release of PostgreSQL on every file system, there and back: `python -m ops.contract`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.soul import Soul
from ops.contract import data
from ops.contract.cells import RELEASES, Cell, every, pairwise
from ops.contract.place import Place, server
from ops.contract.trip import Trip, travel
from ops.servers.child import ServerError
from ops.servers.filesystems import is_btrfs, loop_mount

_DOCUMENT = Path(__file__).parents[2] / "docs" / "contract.md"
_COLUMNS = ("driver", "PostgreSQL", "file system", "exact", "window ms", "longest", "capture ms", "MB, first",
            "MB, next", "restore ms", "of it away ms")
_LOAD_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell came to: trips and the bytes of two checkpoints in a row, or why the driver refused."""

    cell: Cell
    refusal: str = ""
    trips: tuple[Trip, ...] = ()
    first_bytes: int = 0
    next_bytes: int = 0

    @property
    def wrong(self) -> list[str]:
        """All that was not as it must be."""
        return [one for trip in self.trips for one in trip.wrong]


def main(arguments: list[str]) -> int:
    """Run the cells asked for; 1 where any was wrong."""
    parser = argparse.ArgumentParser(prog="python -m ops.contract", description=__doc__)
    parser.add_argument("--only", default="", help="only cells whose name contains this, such as pitr-15")
    parser.add_argument("--pairwise", action="store_true", help="few cells that pair all values, as the tests do")
    parser.add_argument("--rounds", type=int, default=3, help="trips in each cell")
    parser.add_argument("--mb", type=int, default=64, help="size of the table that nobody touches")
    parser.add_argument("--write", action="store_true", help=f"write {_DOCUMENT.name}")
    said = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("contract: needs root for its loop devices", file=sys.stderr)
        return 1
    began_s = time.monotonic()
    outcomes = []
    try:
        for cell in pairwise() if said.pairwise else every():
            if said.only in str(cell):
                outcomes.append(run(cell, said.rounds, said.mb))
                print(_row(outcomes[-1]), flush=True)
    except (ServerError, CheckpointError) as error:
        print(f"contract: {error}", file=sys.stderr)
        return 1
    took_s = time.monotonic() - began_s
    for one in outcomes:
        for sentence in one.wrong:
            print(f"{one.cell}: {sentence}", file=sys.stderr)
    print(_summary(outcomes, took_s))
    if said.write:
        _DOCUMENT.write_text(_page(outcomes, took_s, said.rounds, said.mb))
    return 1 if any(one.wrong for one in outcomes) else 0


def run(cell: Cell, rounds: int, cold_mb: int) -> Outcome:
    """Run one cell on a file system of its own."""
    with ExitStack() as stack:
        mounted = stack.enter_context(loop_mount(cell.file_system, size_gb=4))
        node = stack.enter_context(server(cell, mounted))
        place = Place.made(cell.driver, node, mounted / "vault", cold_rows=cold_mb * 1000)
        reason = dict(Soul.reports(place.ground))[cell.driver]
        if reason is not None:
            return Outcome(cell, refusal=str(reason).replace(str(node.pgdata), "PGDATA"))
        sizes = _sizes(place, mounted)
        trips = tuple(travel(place) for _ in range(rounds))
        return Outcome(cell, trips=trips, first_bytes=sizes[0], next_bytes=sizes[1])


def _sizes(place: Place, mounted: Path) -> list[int]:
    """Make two checkpoints, the second after a moment's load, and return how many bytes each frees when it goes."""
    soul, kept = place.soul(), []
    for _ in range(2):
        kept.append(place.captured(soul))
        with data.load(place.url):
            time.sleep(_LOAD_S)
    place.node.run("psql", "-qc", "checkpoint", "postgres")
    found = []
    for facts, folder in reversed(kept):
        before_bytes = _taken_bytes(mounted)
        soul.discard(facts)
        shutil.rmtree(folder)
        found.append(before_bytes - _taken_bytes(mounted))
    return found[::-1]


def _taken_bytes(mounted: Path) -> int:
    if is_btrfs(mounted):
        subprocess.run(["btrfs", "subvolume", "sync", mounted], check=True, capture_output=True)
    subprocess.run(["sync", "-f", mounted], check=True)
    room = os.statvfs(mounted)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def _row(one: Outcome) -> str:
    name = (one.cell.driver, str(one.cell.release), one.cell.file_system)
    if one.refusal:
        return f"| {' | '.join((*name, f'refused: {one.refusal}'))} |{' |' * (len(_COLUMNS) - len(name) - 1)}"
    windows = [trip.window_ms for trip in one.trips]
    values = (
        *name, "NO" if one.wrong else "yes", f"{statistics.median(windows):.1f}", f"{max(windows):.1f}",
        f"{statistics.median(trip.total_ms for trip in one.trips):.0f}",
        f"{one.first_bytes / 1e6:.1f}", f"{one.next_bytes / 1e6:.1f}",
        f"{statistics.median(trip.restore_ms for trip in one.trips):.0f}",
        f"{statistics.median(trip.away_ms for trip in one.trips):.0f}",
    )
    return f"| {' | '.join(values)} |"


def _summary(outcomes: list[Outcome], took_s: float) -> str:
    refused = sum(bool(one.refusal) for one in outcomes)
    exact = sum(not one.wrong and not one.refusal for one in outcomes)
    trips = sum(len(one.trips) for one in outcomes)
    return (f"{len(outcomes)} cells, {trips} trips in {took_s:.0f} s: {exact} cells exact, {refused} refused, "
            f"{len(outcomes) - exact - refused} wrong")


def _page(outcomes: list[Outcome], took_s: float, rounds: int, cold_mb: int) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True)
    models = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")}
    made = (f"`make contract` on {time.strftime('%Y-%m-%d', time.gmtime())} at commit {commit.stdout.strip()}, "
            f"{', '.join(sorted(models)) or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
            f"file systems on loop devices. {_summary(outcomes, took_s)}.")
    what = (f"Each cell: a server of its own; {rounds} trips. A trip writes from three sessions until the window and "
            "again after it, captures, changes everything, restores, and compares with what was there in the window: "
            "every table, sequence, large object, grant, constraint, function and trigger, and the database's own "
            f"settings and grants. A table of {cold_mb} MB that nobody ever touches is compared with a digest "
            "taken when it was made, which no checkpoint holds. Pages and identity are checked by `verify --deep`.")
    columns = ("Times are medians. Window: what workers wait for, first proof of quiet to last. Capture: all of it, "
               "without the load. MB: what goes from the disk with a first checkpoint, and with the next, each a "
               "second's load later. Restore: from sealed to served; away: for how long of it no client was.")
    few = ("CI (`tests/integration/test_driver_contract.py`) takes cells in which each two values meet that can: "
           f"{', '.join(map(str, pairwise()))}. PostgreSQL {RELEASES[0]} is the wheel's, {RELEASES[1]} Debian's.")
    rows = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *map(_row, outcomes)]
    return "\n".join(["# The contract of the drivers", "", made, "", what, "", columns, "", few, "", *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
