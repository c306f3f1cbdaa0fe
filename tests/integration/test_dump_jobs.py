"""`dump` by several connections: exact, or a loud failure where somebody's lock waits behind the dump's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import psycopg
import pytest

from lych_checkpoint import inspection, restore
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.soul import Soul
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until

_TABLES = 6
_WAITING = """select count(*) from pg_locks where not granted
    and database = (select oid from pg_database where datname = current_database())"""


@pytest.fixture
def tables(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        for number in range(_TABLES):
            connection.execute(f"create table t{number} as select n, md5(n::text) as text "
                               f"from generate_series(1, 20000) as n")
    return database


def _digests(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [connection.execute(f"select md5(string_agg(text, ',' order by n)) from t{number}").fetchone()[0]
                for number in range(_TABLES)]


def test_many_connections_bring_back_the_same(opened: Callable[..., Federation], tables: str) -> None:
    federation = opened(LYCH_DRIVER="dump", LYCH_DUMP_JOBS="3")
    before = _digests(tables)
    made = create(federation, Request())
    folder = federation.vault.path(made["id"]) / "soul" / "dump.pgd"
    assert len(list(folder.iterdir())) > _TABLES
    inspection.verify(federation, made["id"], deep=True)
    with psycopg.connect(tables) as connection:
        connection.execute("update t3 set text = 'gone'; truncate t4; drop table t5")
    # What one setting wrote any other can read.
    restore.restore(opened(LYCH_DRIVER="dump"), made["id"])
    assert _digests(tables) == before


def test_a_lock_that_waits_fails_the_dump_and_leaves_nothing(
    tables: str, postgres: PostgresNode, tmp_path: Path
) -> None:
    soul = Soul.open(Ground(url=tables, pg_bin=postgres.pg_bin, jobs=2), "dump", "refuse")
    with psycopg.connect(tables, autocommit=True) as other:
        other.execute("create table last as select 1 as number")  # the smallest comes last
        altering = Thread(target=other.execute, args=("alter table last alter number type bigint",))
        with pytest.raises(Refused, match="pg_dump failed") as caught, \
                soul.capturing("full", tmp_path / "soul") as capture:
            capture.begin()
            capture.take()
            (dump,) = _children("pg_dump")
            os.kill(dump, signal.SIGSTOP)  # it holds its locks, and gives no table out
            altering.start()
            with psycopg.connect(tables, autocommit=True) as watch:
                wait_until(lambda: watch.execute(_WAITING).fetchone() == (1,))
            os.kill(dump, signal.SIGCONT)
            capture.finish()
        altering.join()
    assert caught.value.code == "program-failed"
    assert "LYCH_DUMP_JOBS=1" in caught.value.mend
    assert list((tmp_path / "soul").iterdir()) == []


def _children(program: str) -> list[int]:
    pids = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == program]
