"""The proof of quiet (I2): who writes is named and refused, fenced or noted; who does not is left in peace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lych_checkpoint.database import Connection, connect, quiet, rows, sequences
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Away, Refused
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.soul import Capture, Soul
from ops.servers.postgres import PostgresNode
from tests.fixtures.places import open_directory


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresNode]:
    """A server with prepared transactions, and without autovacuum: its ANALYZE moves the snapshot."""
    options = {"max_prepared_transactions": "5", "autovacuum": "off"}
    with open_directory() as directory, PostgresNode.start_new(directory, options=options) as node:
        yield node


@pytest.fixture
def soul_url(database: str) -> str:
    with connect(database) as connection:
        rows(connection, "CREATE TABLE public.t (n int); INSERT INTO public.t VALUES (1); CREATE SEQUENCE public.s")
        rows(connection, "SELECT nextval('public.s')")
    return database


@pytest.fixture
def ground(postgres: PostgresNode, soul_url: str) -> Ground:
    return Ground(url=soul_url, pg_bin=postgres.pg_bin)


@contextmanager
def session(url: str, *statements: str, name: str = "the web shop") -> Iterator[Connection]:
    """A client with a transaction open after ``statements``."""
    with connect(url, name=name) as connection:
        rows(connection, "BEGIN")
        for statement in statements:
            rows(connection, statement)  # type: ignore[arg-type]
        yield connection


@contextmanager
def capturing(ground: Ground, tmp_path: Path, writers: str = "refuse") -> Iterator[Capture]:
    soul = Soul.open(ground, "dump", writers)  # type: ignore[arg-type]
    with soul.capturing("c1", tmp_path / "soul") as capture:
        yield capture


def whole(capture: Capture) -> SoulFacts:
    capture.begin()
    capture.take()
    capture.end()
    return capture.finish()


@pytest.mark.parametrize("statement", [
    "INSERT INTO public.t VALUES (2)",
    "UPDATE public.t SET n = 3",
    "SELECT * FROM public.t FOR UPDATE",
    "CREATE TABLE public.u (n int)",
    "SELECT pg_current_xact_id()",
    "UPDATE public.t SET n = 4 WHERE n = -1",
    "SELECT nextval('public.s')",
])
def test_a_writer_is_refused_by_name(ground: Ground, tmp_path: Path, statement: str) -> None:
    with session(ground.url, statement) as writer, capturing(ground, tmp_path) as capture:
        pid = writer.info.backend_pid
        with pytest.raises(Refused, match=f"pid {pid}, user lych, application 'the web shop'") as caught:
            capture.begin()
        assert caught.value.code == "writers"
        assert "LYCH_WRITERS" in caught.value.mend


@pytest.mark.parametrize("statement", ["SELECT * FROM public.t", "SELECT pg_advisory_lock(1)", "LISTEN news"])
def test_readers_and_idle_sessions_do_not_count(ground: Ground, tmp_path: Path, statement: str) -> None:
    with session(ground.url, statement) as reader, connect(ground.url), capturing(ground, tmp_path) as capture:
        capture.begin()
        rows(reader, "SELECT count(*) FROM public.t")
        capture.take()
        rows(reader, "SELECT count(*) FROM public.t")
        capture.end()
        assert capture.finish().writers == ()


def test_a_prepared_transaction_is_refused_though_it_has_no_session(ground: Ground, tmp_path: Path) -> None:
    with session(ground.url, "INSERT INTO public.t VALUES (5)", "PREPARE TRANSACTION 'two phases'"):
        pass
    try:
        with pytest.raises(Refused, match="two phases") as caught:
            Soul.open(ground, "dump", "refuse").preflight()
        assert caught.value.code == "prepared-transactions"
        with capturing(ground, tmp_path) as capture, pytest.raises(Refused, match="two phases") as caught:
            capture.begin()
        assert caught.value.code == "writers"
    finally:
        with connect(ground.url) as connection:
            rows(connection, "ROLLBACK PREPARED 'two phases'")


@pytest.mark.parametrize("statement", [
    "INSERT INTO public.t VALUES (6)",
    "DO 'BEGIN INSERT INTO public.t VALUES (7); RAISE EXCEPTION $$no$$; EXCEPTION WHEN raise_exception THEN END'",
    "ANALYZE public.t",
    "SELECT setval('public.s', 50)",
])
def test_who_wrote_between_the_proofs_is_found(ground: Ground, tmp_path: Path, statement: str) -> None:
    with connect(ground.url) as writer, capturing(ground, tmp_path) as capture:
        capture.begin()
        capture.take()
        rows(writer, statement)  # type: ignore[arg-type]
        with pytest.raises(Refused, match="wrote during the capture") as caught:
            capture.end()
        assert caught.value.code == "snapshot-moved"
    assert not (tmp_path / "soul" / "dump.pgc").exists()


def test_a_nextval_that_leaves_no_trace_is_found_by_value(ground: Ground, tmp_path: Path) -> None:
    with connect(ground.url) as writer, capturing(ground, tmp_path) as capture:
        rows(writer, "SELECT nextval('public.s')")  # the first after a checkpoint is logged and would show
        capture.begin()
        with connect(ground.url) as watch:
            before = quiet.look(watch).snapshot
            rows(writer, "SELECT nextval('public.s')")
            assert quiet.look(watch).snapshot == before
        capture.take()
        with pytest.raises(Refused, match=r"sequence public\.s moved") as caught:
            capture.end()
        assert caught.value.code == "snapshot-moved"


def test_who_began_in_the_window_and_still_writes_is_refused_by_name(ground: Ground, tmp_path: Path) -> None:
    with capturing(ground, tmp_path) as capture:
        capture.begin()
        capture.take()
        with session(ground.url, "INSERT INTO public.t VALUES (8)") as writer:
            with pytest.raises(Refused, match=f"pid {writer.info.backend_pid}") as caught:
                capture.end()
            assert caught.value.code == "writers"


def test_note_seals_one_instant_and_says_who_wrote(ground: Ground, tmp_path: Path) -> None:
    with session(ground.url, "INSERT INTO public.t VALUES (9)") as writer, \
            capturing(ground, tmp_path, "note") as capture:
        capture.begin()
        capture.take()
        rows(writer, "COMMIT")
        rows(writer, "SELECT nextval('public.s')")
        capture.end()
        facts = capture.finish()
        pid = writer.info.backend_pid
    assert f"pid {pid}, user lych, application 'the web shop'" in facts.writers[0]
    assert any("transactions" in line for line in facts.writers)
    assert any("public.s" in line for line in facts.writers)
    assert [one.last_value for one in facts.sequences if one.name == "public.s"] == [2]


def test_the_fence_lets_writers_wait_and_readers_pass(ground: Ground, tmp_path: Path) -> None:
    done = threading.Event()

    def write() -> None:
        with connect(ground.url, name="late") as connection:
            rows(connection, "INSERT INTO public.t VALUES (10)")
        done.set()

    with connect(ground.url) as reader, capturing(ground, tmp_path, "fence") as capture:
        capture.begin()
        thread = threading.Thread(target=write)
        thread.start()
        _until(lambda: rows(reader, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)])
        capture.take()
        assert rows(reader, "SELECT count(*) FROM public.t") == [(1,)]
        assert not done.is_set()
        capture.end()
        thread.join(10)
        assert done.is_set()
        facts = capture.finish()
        assert rows(reader, "SELECT count(*) FROM public.t") == [(2,)]
    assert facts.writers == ()


def test_the_fence_names_whom_it_could_not_wait_for(ground: Ground, tmp_path: Path) -> None:
    with session(ground.url, "UPDATE public.t SET n = 11"), capturing(ground, tmp_path, "fence") as capture:
        with pytest.raises(Refused, match="the web shop") as caught:
            capture.begin()
        assert caught.value.code == "writers"
    with connect(ground.url) as connection:
        rows(connection, "UPDATE public.t SET n = 12")


def test_the_fences_whole_wait_is_bounded_however_many_tables(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "_FENCE_WAIT_MS", 60_000)
    monkeypatch.setattr(quiet, "_FENCE_MS", 200)
    with session(ground.url, "UPDATE public.t SET n = 11"), capturing(ground, tmp_path, "fence") as capture:
        with pytest.raises(Refused, match=r"waited \d\.\d s for .*the web shop") as caught:
            capture.begin()
        assert caught.value.code == "writers"


def test_a_writer_who_takes_two_tables_in_another_order_is_waited_for_and_not_ended(
    ground: Ground, tmp_path: Path
) -> None:
    with connect(ground.url) as connection:
        rows(connection, "CREATE TABLE public.u (n int)")
    with session(ground.url, "INSERT INTO public.u VALUES (1)") as writer, \
            capturing(ground, tmp_path, "fence") as capture, connect(ground.url) as watch:
        thread = threading.Thread(target=capture.begin)
        thread.start()
        _until(lambda: rows(watch, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)])
        rows(writer, "INSERT INTO public.t VALUES (1)")  # a fence that waits with this one in hand would deadlock
        rows(writer, "COMMIT")
        thread.join(10)
        capture.take()
        capture.end()
        assert capture.finish().writers == ()


@pytest.fixture
def neighbour(postgres: PostgresNode) -> Iterator[str]:
    """Another database of the same server."""
    postgres.run("psql", "-qc", "create database neighbour", "postgres")
    with connect(url := postgres.url("neighbour")) as connection:
        rows(connection, "CREATE TABLE public.t (n int)")
    yield url
    postgres.run("psql", "-qc", "drop database neighbour with (force)", "postgres")


@pytest.mark.parametrize("writers", ["refuse", "fence"])
def test_a_neighbour_that_is_only_in_a_transaction_stands_in_nobodys_way(
    ground: Ground, tmp_path: Path, neighbour: str, writers: str
) -> None:
    insert = "INSERT INTO public.t VALUES (1)"
    with session(neighbour, insert, "PREPARE TRANSACTION 'theirs'"), session(neighbour, insert):
        try:
            assert Soul.open(ground, "dump", writers).preflight() == []  # type: ignore[arg-type]
            with capturing(ground, tmp_path, writers) as capture:
                assert whole(capture).writers == ()
        finally:
            with connect(neighbour) as connection:
                rows(connection, "ROLLBACK PREPARED 'theirs'")


def test_a_neighbour_that_commits_is_told_from_nobody_without_a_fence(
    ground: Ground, tmp_path: Path, neighbour: str
) -> None:
    with connect(neighbour) as other, capturing(ground, tmp_path) as capture:
        capture.begin()
        rows(other, "INSERT INTO public.t VALUES (1)")
        capture.take()
        with pytest.raises(Refused, match="in this database or beside it") as caught:
            capture.end()
    assert caught.value.code == "snapshot-moved"
    assert "LYCH_WRITERS to fence" in caught.value.mend


def test_behind_the_fence_a_neighbour_may_commit_and_the_dump_is_exact(
    ground: Ground, tmp_path: Path, neighbour: str
) -> None:
    soul = Soul.open(ground, "dump", "fence")
    with connect(neighbour) as other, soul.capturing("c1", tmp_path / "soul") as capture:
        for act in (capture.begin, capture.take, capture.end):
            rows(other, "INSERT INTO public.t VALUES (1)")
            act()
        facts = capture.finish()
    assert [line.partition(":")[0] for line in facts.writers] == ["behind the fence"]
    with connect(ground.url) as connection:
        rows(connection, "UPDATE public.t SET n = 5")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    try:
        with soul.opened(staged) as url, connect(url) as connection:
            assert rows(connection, "SELECT n FROM public.t") == [(1,)]
    finally:
        soul.discard_stage(staged)


def test_a_writer_here_is_named_whatever_the_neighbours_do(ground: Ground, tmp_path: Path, neighbour: str) -> None:
    insert = "INSERT INTO public.t VALUES (1)"
    with session(neighbour, insert), session(ground.url, insert), capturing(ground, tmp_path) as capture:
        with pytest.raises(Refused, match=r"somebody else writes: pid \d+, .* database test_\d+ \(") as caught:
            capture.begin()
        assert caught.value.code == "writers"


def test_a_fence_whose_holder_died_is_gone(ground: Ground, tmp_path: Path) -> None:
    with connect(ground.url) as other, pytest.raises(Away), capturing(ground, tmp_path, "fence") as capture:
        capture.begin()
        rows(other, """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                       WHERE application_name LIKE 'lych-checkpoint %%' AND pid <> pg_backend_pid()""", ())
        rows(other, "SET lock_timeout TO '5s'")
        rows(other, "UPDATE public.t SET n = 13")
        capture.end()


def test_the_flush_ends_before_the_first_reading(soul_url: str) -> None:
    with connect(soul_url) as one, connect(soul_url) as two:
        quiet.flush(one)
        assert quiet.look(two).writers == ()


def test_a_reading_takes_a_few_milliseconds_with_many_sequences(soul_url: str) -> None:
    with connect(soul_url) as connection:
        rows(connection, "DO 'BEGIN FOR n IN 1..1200 LOOP EXECUTE ''CREATE SEQUENCE public.q'' || n; END LOOP; END'")
        values = sequences.read(connection)
        assert len(values) == 1201
        began = time.perf_counter()
        assert sequences.read(connection) == values
        assert time.perf_counter() - began < 1


def _until(true: object) -> None:
    deadline = time.monotonic() + 10
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
