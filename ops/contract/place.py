"""A server on the file system of one cell, a database with something of everything, and a driver on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.drivers.base import Evidence, Ground
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.soul import Soul, Writers
from ops.contract import data
from ops.contract.cells import Cell
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import PostgresNode

_numbers = itertools.count()


@contextmanager
def server(cell: Cell, mounted: Path) -> Iterator[PostgresNode]:
    """Run a server of the cell's release below ``mounted``, a directory on the cell's file system."""
    directory = mounted / f"server-{cell}"
    directory.mkdir(mode=0o711)
    if (cell.driver, cell.file_system) == ("btrfs", "btrfs"):
        make_pgdata_subvolume(directory / "pgdata")
    with PostgresNode.start_new(directory, pg_bin=cell.pg_bin) as node:
        yield node


@dataclass
class Place:
    """A server, and a fresh database on it. ``cold`` is the digest of `app.cold` when it was made.

    ``into`` is where checkpoints' folders are made.
    """

    driver: str
    node: PostgresNode
    url: str
    into: Path
    cold: str

    @classmethod
    def made(cls, driver: str, node: PostgresNode, into: Path, cold_rows: int = 2000) -> Place:
        """Make a database with everything in it."""
        name = f"soul{next(_numbers)}"
        node.run("psql", "-qc", f"create database {name}", "postgres")
        url = node.url(name)
        return cls(driver, node, url, into, data.make(url, cold_rows))

    @property
    def ground(self) -> Ground:
        """What drivers work on here."""
        return Ground(url=self.url, pgdata=self.node.pgdata, pg_bin=self.node.pg_bin)

    def soul(self, writers: Writers = "refuse") -> Soul:
        """Open the driver."""
        return Soul.open(self.ground, self.driver, writers)

    def captured(self, soul: Soul, name: str = "") -> tuple[SoulFacts, Path]:
        """Capture in a window in which nobody writes."""
        name = name or unique("c")
        folder = self.into / name / "soul"
        return captured(soul, name, folder), folder

    def staged(self, soul: Soul, facts: SoulFacts, folder: Path, ticket: str, generation: int = 9) -> Evidence:
        """Bring the data back aside, and give them a witness."""
        staged = soul.stage(facts, folder, ticket)
        soul.animate(staged, facts=facts, generation=generation, signature="sha256:back", repos=data.REPOS,
                     journal=ticket)
        return staged


def unique(prefix: str) -> str:
    """Return a name that was not given before in this process."""
    return f"{prefix}{next(_numbers)}"


def captured(soul: Soul, name: str, folder: Path) -> SoulFacts:
    """Capture into ``folder`` as the checkpoint ``name``, in a window in which nobody writes."""
    with soul.capturing(name, folder) as capture:
        capture.begin()
        capture.take()
        capture.end()
        return capture.finish()
