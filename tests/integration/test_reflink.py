"""What only the reflink driver does: its rights, its refusals, and WAL that went."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers import reflink
from lych_checkpoint.drivers.base import Ground, Unfit
from lych_checkpoint.errors import Refused
from lych_checkpoint.soul import Soul
from ops.servers.postgres import PostgresNode
from tests.fixtures.children import in_child
from tests.fixtures.client import wait_until


@pytest.fixture(scope="module")
def node(xfs: Path) -> Iterator[PostgresNode]:
    with PostgresNode.start_new(xfs / "server") as made:
        yield made


@pytest.fixture
def ground(node: PostgresNode) -> Ground:
    return Ground(url=node.url(), pgdata=node.pgdata, pg_bin=node.pg_bin)


def _reason(ground: Ground) -> Unfit | None:
    return dict(Soul.reports(ground))["reflink"]


def test_each_missing_right_is_said_with_the_command_that_gives_it(node: PostgresNode, ground: Ground) -> None:
    assert _reason(ground) is None
    with connect(node.url()) as connection:
        rows(connection, "CREATE ROLE saver LOGIN PASSWORD 'x'")
        saver = replace(ground, url=make_conninfo(node.url(), user="saver", password="x"))
        for _ in range(3):
            reason = _reason(saver)
            assert reason is not None
            command = reason.mend
            assert command.startswith(("GRANT", "ALTER ROLE saver REPLICATION"))
            rows(connection, command)  # type: ignore[arg-type]
    assert _reason(saver) is None


def test_a_file_in_many_pieces_is_refused(
    node: PostgresNode, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    soul = Soul.open(ground, "reflink", "refuse")
    assert soul.preflight() == []
    monkeypatch.setattr(reflink, "_LARGE_BYTES", 0)
    monkeypatch.setattr(reflink, "_LONGEST_MS", 2.0)
    path = node.pgdata / "base" / "shattered"
    with path.open("wb") as file:
        for n in range(300):
            os.pwrite(file.fileno(), b"x" * 4096, 2 * n * 4096)
        os.fsync(file.fileno())
    try:
        with pytest.raises(Refused, match="pieces") as caught:
            soul.preflight()
    finally:
        path.unlink()
    assert caught.value.code == "too-many-extents"
    assert caught.value.where == str(path)


def test_a_full_disk_is_refused_before_the_server_meets_it(node: PostgresNode, ground: Ground, xfs: Path) -> None:
    soul = Soul.open(ground, "reflink", "refuse")
    filler, folder = xfs / "filler", xfs / "vault" / "soul"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(xfs).free - (200 << 20))
    try:
        with pytest.raises(Refused, match="MB are free") as caught, soul.capturing("full", folder):
            pass
    finally:
        filler.unlink()
    assert caught.value.code == "no-room"
    assert list((node.pgdata.parent / ".lych-pgdata").iterdir()) == []


def test_a_copy_that_finds_no_room_leaves_nothing(node: PostgresNode, ground: Ground, xfs: Path) -> None:
    soul = Soul.open(ground, "reflink", "refuse")
    largest = (node.pgdata / "base" / "1" / "1255").stat().st_size // 2

    def capture() -> None:
        with soul.capturing("short", xfs / "vault" / "soul"):
            pass

    failed = in_child(capture, largest_file_bytes=largest)
    assert isinstance(failed, Refused)
    assert failed.code == "no-room"
    assert list((node.pgdata.parent / ".lych-pgdata").iterdir()) == []
    with connect(node.url()) as connection:
        wait_until(lambda: rows(connection, "SELECT count(*) FROM pg_replication_slots") == [(0,)])
