"""The contract's cells: every driver on every release of PostgreSQL on every file system."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lych_checkpoint.drivers import DRIVERS
from ops.servers.filesystems import Kind

#: The release of the `demo` extra's wheel, and the oldest that Debian 12 has.
RELEASES = (18, 15)
FILE_SYSTEMS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination. ``release`` is PostgreSQL's major version."""

    driver: str
    release: int
    file_system: Kind

    def __str__(self) -> str:
        return f"{self.driver}-{self.release}-{self.file_system}"

    @property
    def pg_bin(self) -> Path | None:
        """Where its programs are; None for the release that is found without being named."""
        return None if self.release == RELEASES[0] else Path(f"/usr/lib/postgresql/{self.release}/bin")


def every() -> list[Cell]:
    """Return all cells, those that a driver refuses too."""
    return [Cell(*values) for values in itertools.product(DRIVERS, RELEASES, FILE_SYSTEMS)]


def fitting() -> list[Cell]:
    """Return the cells of `every` that no driver refuses."""
    wanted = {"btrfs": {"btrfs"}, "reflink": {"btrfs", "xfs"}}
    return [cell for cell in every() if cell.file_system in wanted.get(cell.driver, set(FILE_SYSTEMS))]


def pairwise() -> list[Cell]:
    """Return few cells, in which each two values meet that meet in `fitting`; both releases of each driver first."""
    return [
        Cell("btrfs", 18, "btrfs"), Cell("reflink", 18, "xfs"), Cell("dump", 18, "ext4"), Cell("pitr", 18, "ext4"),
        Cell("btrfs", 15, "btrfs"), Cell("reflink", 15, "btrfs"), Cell("dump", 15, "ext4"), Cell("pitr", 15, "xfs"),
        Cell("dump", 15, "xfs"), Cell("dump", 18, "btrfs"), Cell("pitr", 15, "btrfs"),
    ]
