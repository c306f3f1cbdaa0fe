"""`dump` while its programs and its server are killed, and its tables rewritten under it: whole, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lych_checkpoint import restore
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.database import catalogue, connect, rows
from lych_checkpoint.drivers import dumping
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.drivers.dump import DumpDriver
from lych_checkpoint.errors import Away, CheckpointError, Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.soul import Soul
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.places import open_directory
from tests.fixtures.reviving import revive

Open = Callable[..., Federation]
#: An index that takes a minute to make, but only for pg_restore.
_SLOW = """
    CREATE FUNCTION slow(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_sleep(60) WHERE current_setting('application_name') = 'lych-checkpoint restore'; RETURN n; END $$;
    CREATE INDEX ON kept (slow(n))"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresNode]:
    """A server of its own, which is killed; with few locks."""
    options = {"max_connections": "20", "max_locks_per_transaction": "10", "autovacuum": "off"}
    with open_directory() as directory, PostgresNode.start_new(directory, options=options) as node:
        yield node


@pytest.fixture
def soul(postgres: PostgresNode, database: str) -> Soul:
    """The driver over a table that takes a while to dump."""
    with connect(database) as connection:
        rows(connection, """
            CREATE EXTENSION hstore; CREATE TABLE theirs (n int); ALTER EXTENSION hstore ADD TABLE theirs;
            CREATE TABLE kept AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n""")
    return Soul.open(Ground(url=database, pg_bin=postgres.pg_bin), "dump", "note")


@pytest.mark.parametrize("statement", ["TRUNCATE kept", "DROP TABLE kept", "ALTER TABLE kept ALTER n TYPE bigint"])
def test_a_table_rewritten_between_snapshot_and_lock_is_refused(
    soul: Soul, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    spawned = dumping.spawned

    def after_a_rewrite(*arguments: Any, **named: Any) -> Any:
        with connect(database) as connection:
            rows(connection, statement)  # type: ignore[arg-type]
        return spawned(*arguments, **named)

    monkeypatch.setattr(dumping, "spawned", after_a_rewrite)
    with pytest.raises(Refused) as caught, soul.capturing("c1", tmp_path / "soul") as capture:
        capture.begin()
        capture.take()
    assert caught.value.code == ("program-failed" if statement.startswith("DROP") else "snapshot-moved")
    assert list((tmp_path / "soul").iterdir()) == []


def test_a_table_that_pg_dump_locks_not_and_that_is_rewritten_is_refused(
    soul: Soul, database: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"table public\.theirs was rewritten") as caught, \
            soul.capturing("c1", tmp_path / "soul") as capture:
        capture.begin()
        capture.take()
        capture.end()
        with connect(database) as connection:
            rows(connection, "TRUNCATE theirs")
        capture.finish()
    assert caught.value.code == "dump-raced"
    assert list((tmp_path / "soul").iterdir()) == []


def test_more_tables_than_locks_are_refused_before_the_freeze(soul: Soul, database: str) -> None:
    with connect(database) as connection:
        for number in range(210):
            rows(connection, f"CREATE TABLE t{number} ()")  # type: ignore[arg-type]
    with pytest.raises(Refused, match="need more locks than the server has") as caught:
        soul.preflight()
    assert caught.value.code == "too-few-locks"
    assert "max_locks_per_transaction" in caught.value.mend


def test_a_pg_dump_killed_before_it_has_its_locks_seals_nothing(soul: Soul, database: str, tmp_path: Path) -> None:
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE kept IN ACCESS EXCLUSIVE MODE")
        killer = threading.Thread(target=_kill, args=("pg_dump",))
        with pytest.raises(Refused, match="pg_dump failed with -9"), \
                soul.capturing("c1", tmp_path / "soul") as capture:
            capture.begin()
            killer.start()
            capture.take()
        killer.join()
    assert list((tmp_path / "soul").iterdir()) == []


def test_a_pg_dump_killed_while_it_reads_seals_nothing(soul: Soul, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="pg_dump failed with -9"), soul.capturing("c1", tmp_path / "soul") as capture:
        capture.begin()
        capture.take()
        _kill("pg_dump")
        capture.end()
        capture.finish()
    assert list((tmp_path / "soul").iterdir()) == []


@pytest.mark.parametrize("victim", ["pg_restore", "server", "server before"])
def test_whoever_is_killed_while_a_dump_is_staged_the_old_pair_stays(
    victim: str, soul: Soul, opened: Open, postgres: PostgresNode, database: str, federation_root: Path
) -> None:
    with connect(database) as connection:
        rows(connection, _SLOW)
    federation = opened(LYCH_DRIVER="dump")
    made = create(federation, Request())
    new = _changed(database, federation_root)

    def kill() -> None:
        wait_until(lambda: _children("pg_restore"))
        if victim == "server":
            postgres.kill()
        else:
            _kill("pg_restore")

    killer = threading.Thread(target=kill)
    if victim == "server before":
        postgres.stop()
    else:
        killer.start()
    with pytest.raises(CheckpointError) as caught:
        restore.restore(federation, made["id"])
    if victim == "server before":
        assert isinstance(caught.value, Away)
        postgres.start()
    else:
        killer.join()
    if victim == "server":
        revive(postgres)
    restore.recover(federation)
    assert _pair(database, federation_root) == new
    assert _databases(database) == 1


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_server_killed_around_the_switch_leaves_a_whole_pair(
    moment: str, soul: Soul, opened: Open, postgres: PostgresNode, database: str, federation_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = opened(LYCH_DRIVER="dump")
    made = create(federation, Request())
    old = _pair(database, federation_root)
    new = _changed(database, federation_root)
    owner, name = (catalogue, "rename_both") if moment == "between" else (DumpDriver, "switch")
    act = getattr(owner, name)

    def and_kill(*arguments: Any) -> None:
        if moment == "after":
            act(*arguments)
        postgres.kill()
        with suppress(psycopg.Error):
            act(*arguments)
        raise Away("the server was killed", "")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_kill)
        with pytest.raises(CheckpointError):
            restore.restore(federation, made["id"])
    revive(postgres)
    restore.recover(federation)
    assert _pair(database, federation_root) in (old, new)
    restore.restore(federation, made["id"])
    assert _pair(database, federation_root) == old


def test_a_switch_that_was_killed_before_it_let_anybody_in_is_ended_by_the_next(
    postgres: PostgresNode, database: str
) -> None:
    driver = DumpDriver(Ground(url=database, pg_bin=postgres.pg_bin))
    plan = driver.plan_stage({}, "t1")
    postgres.run("psql", "-qc", f'create database "{plan["staged"]}"', "postgres")
    with catalogue.maintenance(database) as connection:
        staged = {**plan, "staged_oid": catalogue.oid_of(connection, str(plan["staged"]))}
        driver.switch(staged)
        catalogue.admit(connection, str(plan["database"]), everybody=False)
        driver.switch(staged)
        with connect(database) as live:
            assert rows(live, "SELECT oid::int FROM pg_database WHERE datname = current_database()") == [
                (staged["staged_oid"],)]
        catalogue.drop(connection, str(plan["old"]))


def test_a_standby_is_named(soul: Soul, postgres: PostgresNode) -> None:
    signal_file = postgres.pgdata / "standby.signal"

    def control(word: str) -> None:
        subprocess.run([postgres.pg_bin / "pg_ctl", "-w", "-D", postgres.pgdata, "-l", "/dev/null", word], check=True,
                       cwd="/", stdout=subprocess.DEVNULL, **postgres.owner.popen_arguments())

    postgres.stop()
    signal_file.touch()
    os.chown(signal_file, postgres.owner.uid, postgres.owner.gid)
    try:
        control("start")
        assert str(soul.driver.probe()) == "the server is a standby: set LYCH_DATABASE_URL to its primary"
    finally:
        control("promote")
        postgres.stop()
        postgres.start()


def _changed(database: str, root: Path) -> tuple[object, ...]:
    """Change both halves, and return them."""
    commit(root / "core", {"new.py": "NEW = 1\n"})
    with connect(database) as connection:
        rows(connection, "DELETE FROM kept WHERE n > 10")
    return _pair(database, root)


def _pair(database: str, root: Path) -> tuple[object, ...]:
    with connect(database) as connection:
        return (git(root / "core", "rev-parse", "HEAD"), git(root / "core", "status", "--porcelain"),
                *rows(connection, "SELECT count(*), sum(n) FROM kept"))


def _databases(database: str) -> int:
    with connect(database) as connection:
        return int(rows(connection, """
            SELECT count(*) FROM pg_database WHERE starts_with(datname, current_database() || '__') OR
                datname = current_database()""")[0][0])


def _kill(program: str) -> None:
    wait_until(lambda: _children(program))
    for pid in _children(program):
        os.kill(pid, signal.SIGKILL)


def _children(program: str) -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):
            for pid in map(int, (task / "children").read_text().split()):
                with suppress(FileNotFoundError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                        found.append(pid)
    return found
