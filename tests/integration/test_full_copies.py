"""The disk of a cluster whose copies share its bytes fills: nothing is lost, and the next copy is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.soul import Soul
from ops.contract.place import captured
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import PostgresNode
from tests.fixtures.filesystems import fill_disk


@pytest.fixture(params=["btrfs", "reflink"])
def soul(request: pytest.FixtureRequest) -> Iterator[tuple[Soul, PostgresNode, Path]]:
    """A driver, its server, and the disk on which both are."""
    disk: Path = request.getfixturevalue({"btrfs": "btrfs", "reflink": "xfs"}[request.param])
    directory = disk / request.node.name
    directory.mkdir(mode=0o711)
    if request.param == "btrfs":
        make_pgdata_subvolume(directory / "pgdata")
    with PostgresNode.start_new(directory) as node:
        ground = Ground(url=node.url(), pgdata=node.pgdata, pg_bin=node.pg_bin)
        yield Soul.open(ground, request.param, "refuse"), node, disk


def test_a_disk_that_fills_refuses_a_copy_and_a_restore_and_then_allows_both(
    soul: tuple[Soul, PostgresNode, Path], tmp_path: Path
) -> None:
    driver, node, disk = soul
    shelf, filler = node.pgdata.parent / ".lych-pgdata", disk / "filler"
    facts = captured(driver, "first", tmp_path / "first")
    before = sorted(path.name for path in shelf.iterdir())
    try:
        fill_disk(filler, leave_bytes=100 << 20)
        with pytest.raises(Refused, match="MB are free") as caught, driver.capturing("full", tmp_path / "full"):
            pass
        assert caught.value.code == "no-room"
        fill_disk(filler, leave_bytes=0)
        assert _checked(driver, facts, tmp_path / "first") in ("whole", "no-room", "server-starved")
        assert sorted(path.name for path in shelf.iterdir()) == before
        with connect(node.url()) as connection:
            assert rows(connection, "SELECT 1") == [(1,)]
    finally:
        filler.unlink()
    assert driver.verify(facts, tmp_path / "first", deep=True) == []
    staged = driver.stage(facts, tmp_path / "first", "t")
    with driver.opened(staged):
        pass
    driver.switch(staged)
    with connect(node.url()) as connection:
        assert rows(connection, "SELECT 1") == [(1,)]


def _checked(driver: Soul, facts: SoulFacts, folder: Path) -> str:
    """Stage and open a copy, as a restore does; return what that said. On Btrfs a recovery may find room enough."""
    try:
        return "; ".join(driver.verify(facts, folder, deep=True)) or "whole"
    except Refused as error:
        return error.code
