"""The disk of a server fills while a dump is brought back beside the live database: the live one stays, and works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.soul import Soul
from ops.contract.place import captured
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until
from tests.fixtures.filesystems import fill_disk, own_mount
from tests.fixtures.reviving import revive

_COUNT = "SELECT count(*), count(DISTINCT u) FROM noise"
_ROWS = 400_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of the test's own."""
    with own_mount("ext4", size_gb=1) as mounted:
        yield mounted


@pytest.mark.parametrize("full", ["data", "wal"])
def test_a_disk_that_fills_in_a_restore_costs_nothing_but_the_restore(
    full: str, disk: Path, server_directory: Path, tmp_path: Path
) -> None:
    small, large = disk / "server", server_directory
    small.mkdir(mode=0o711)
    with PostgresNode.start_new(small if full == "data" else large) as node:
        _move_wal(node, large if full == "data" else small)
        with connect(node.url()) as connection:
            rows(connection, "CREATE DATABASE soul")
        url = node.url("soul")
        with connect(url) as connection:
            rows(connection, f"CREATE TABLE noise AS SELECT gen_random_uuid() u, repeat('x', 60) x "
                             f"FROM generate_series(1, {_ROWS})")
        driver = Soul.open(Ground(url=url, pg_bin=node.pg_bin), "dump", "note")
        facts = captured(driver, "first", tmp_path / "first")
        filler = disk / "filler"
        try:
            fill_disk(filler, leave_bytes=24 << 20)
            with pytest.raises(CheckpointError) as caught:
                driver.stage(facts, tmp_path / "first", "t")
            assert caught.value.exit_code in (1, 75)
            assert full == "wal" or "No space left on device" in str(caught.value)
        finally:
            filler.unlink()
        # PostgreSQL ends where it cannot write its log, or recovers by itself.
        wait_until(lambda: node.pid is None or _answers(url))
        if node.pid is None:
            revive(node)
        _finds_all(url)
        driver.discard_stage(driver.plan_stage(facts, "t"))
        assert _databases(node) == {"postgres", "soul"}
        staged = driver.stage(facts, tmp_path / "first", "t")
        driver.switch(staged)
        driver.let_in()
        _finds_all(url)


def _move_wal(node: PostgresNode, disk: Path) -> None:
    node.stop()
    log, elsewhere = node.pgdata / "pg_wal", disk / "wal"
    shutil.copytree(log, elsewhere)
    for path in (elsewhere, *elsewhere.rglob("*")):
        shutil.chown(path, node.owner.uid, node.owner.gid)
    shutil.rmtree(log)
    log.symlink_to(elsewhere)
    node.start()


def _answers(url: str) -> bool:
    try:
        with connect(url):
            return True
    except CheckpointError:
        return False


def _finds_all(url: str) -> None:
    with connect(url) as connection:
        assert rows(connection, _COUNT) == [(_ROWS, _ROWS)]


def _databases(node: PostgresNode) -> set[str]:
    with connect(node.url()) as connection:
        return {str(name) for (name,) in rows(connection, "SELECT datname FROM pg_database WHERE NOT datistemplate")}
