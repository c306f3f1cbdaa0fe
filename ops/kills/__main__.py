"""`python -m ops.kills`: kill a restore at every step, by every driver. Exit 0: old or new each time; 1: not."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ops.kills import matrix
from ops.kills.acts import ACTS
from ops.kills.ground import Ground
from ops.kills.matrix import Outcome
from ops.servers.child import ServerError
from ops.servers.filesystems import Kind, is_btrfs, loop_mount, remove_with_subvolumes

DRIVERS = ("btrfs", "reflink", "pitr", "dump")
#: What a driver needs to stand on, and the variable that names a directory there for who is not root.
GROUNDS: dict[str, tuple[Kind, str]] = {
    "btrfs": ("btrfs", "LYCH_TEST_BTRFS"), "reflink": ("xfs", "LYCH_TEST_XFS"), "pitr": ("xfs", "LYCH_TEST_XFS")}
_COLUMNS = tuple((when, who) for when in ("before", "in", "after") for who in ("alone", "group"))


def main(arguments: list[str]) -> int:
    """Run the matrix, or a sample of it, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m ops.kills")
    parser.add_argument("--driver", choices=DRIVERS, action="append")
    parser.add_argument("--act", choices=ACTS, action="append")
    parser.add_argument("--sample", type=int, default=0, help="so many kills of each driver, not all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    said = parser.parse_args(arguments)
    began_s = time.monotonic()
    try:
        found = [one for driver in said.driver or DRIVERS
                 for one in kill(driver, said.sample, said.seed, said.act or ACTS)]
    except ServerError as error:
        print(f"kills: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(found)))
    bad = [one for one in found if not one.good]
    print(f"\n{len(found)} kills, seed {said.seed}, {time.monotonic() - began_s:.0f} s: "
          f"{sum(one.pair == 'old' for one in found)} old, {sum(one.pair == 'new' for one in found)} new, "
          f"{len(bad)} wrong")
    for one in bad:
        print(f"{one.driver}: {one.point}: {one.pair} {one.wrong}")
    return 1 if bad else 0


def kill(driver: str, sample: int, seed: int, acts: Collection[str] = tuple(ACTS)) -> Iterator[Outcome]:
    """Run one driver's kills, all or so many by chance, each outcome as it is known."""
    chance = random.Random(seed)
    with place(driver) as home, ExitStack() as stack:
        ground = Ground(home, driver, stack)
        some = matrix.points(ground, chance, acts)
        for one in matrix.run(ground, chance.sample(some, sample) if sample else some, chance):
            if sys.stderr.isatty() or not one.good:
                print(f"{driver}: {one.point}: {one.pair} {one.wrong}", file=sys.stderr)
            yield one


@contextmanager
def place(driver: str) -> Iterator[Path]:
    """Yield a directory for one driver: physical ones need root, or the variable in `GROUNDS`."""
    with ExitStack() as stack:
        parent = None
        if driver in GROUNDS:
            kind, variable = GROUNDS[driver]
            parent = os.environ.get(variable) or str(stack.enter_context(loop_mount(kind)))
        home = Path(tempfile.mkdtemp(prefix="lych-kills-", dir=parent))
        home.chmod(0o711)
        stack.callback(remove_with_subvolumes if is_btrfs(home) else shutil.rmtree, home)
        yield home


def table(found: list[Outcome]) -> list[str]:
    """Return the matrix as Markdown: what each kill came to; a dash where there is nothing to be killed in."""
    lines = ["| driver | act | step | " + " | ".join(f"{when}, {who}" for when, who in _COLUMNS) + " |",
             "|---" * (3 + len(_COLUMNS)) + "|"]
    cells: dict[tuple[str, ...], Outcome] = {
        (one.driver, one.point.act, one.point.step, one.point.when, one.point.who): one for one in found}
    for driver in DRIVERS:
        for name, step in [(name, step) for name, act in ACTS.items() for step in act.steps]:
            row = [cells.get((driver, name, step, when, who)) for when, who in _COLUMNS]
            if any(row):
                said = ["-" if one is None else one.pair if one.good else f"WRONG {one.pair}" for one in row]
                lines.append(f"| {driver} | {name} | {step} | " + " | ".join(said) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
