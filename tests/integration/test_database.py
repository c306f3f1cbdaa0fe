"""Connections and whole databases: errors in our words, and what a dump forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lych_checkpoint.database import Connection, atomic, catalogue, connect, losses, patient, portrait, rows, speaking
from lych_checkpoint.database import sequences as by_value
from lych_checkpoint.database.server import describe
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Away, Refused, SettingError
from lych_checkpoint.soul import Soul
from ops.servers.postgres import PostgresNode
from tests.fixtures.lacking import lacks
from tests.fixtures.places import open_directory


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as made:
        yield made


@pytest.mark.parametrize("change", [{"port": "1"}, {"password": "wrong-s3cret"}, {"dbname": "nowhere"}])
def test_who_cannot_connect_is_told_away_and_no_password(database: str, change: dict[str, str]) -> None:
    address = make_conninfo(database, **change)
    with pytest.raises(Away) as caught:
        connect(address)
    shown = f"{caught.value} {caught.value.where}"
    assert caught.value.exit_code == 75
    assert caught.value.mend
    assert conninfo_to_dict(address)["password"] not in shown
    assert caught.value.where.startswith("127.0.0.1/")


@pytest.mark.parametrize("bad", ["postgresql+psycopg://u@h/d", "host=h nonsense", "postgresql://u@h/d?odd=1"])
def test_a_bad_url_is_a_bad_setting(bad: str) -> None:
    with pytest.raises(SettingError) as caught:
        connect(bad)
    assert caught.value.where == "LYCH_DATABASE_URL"


def test_connections_are_autocommit_and_named(connection: Connection) -> None:
    assert connection.autocommit
    assert rows(connection, "SHOW application_name") == [("lych-checkpoint",)]


def test_a_lost_connection_is_away_and_a_no_is_refused(database: str, connection: Connection) -> None:
    with pytest.raises(Refused, match="nowhere") as refused, speaking(connection):
        rows(connection, "SELECT * FROM nowhere")
    assert refused.value.code == "database-refused"
    with connect(database) as other:
        rows(other, "SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
    for _ in range(2):  # once told by the server, once known to be closed
        with pytest.raises(Away), speaking(connection):
            rows(connection, "SELECT 1")


def test_our_own_errors_pass_unchanged(connection: Connection) -> None:
    with pytest.raises(ZeroDivisionError), speaking(connection):
        raise ZeroDivisionError


def test_atomic_undoes_all_of_it(connection: Connection) -> None:
    rows(connection, "CREATE TABLE public.t (n int)")
    with pytest.raises(ZeroDivisionError), atomic(connection):
        rows(connection, "INSERT INTO public.t VALUES (1)")
        raise ZeroDivisionError
    assert rows(connection, "SELECT count(*) FROM public.t") == [(0,)]


def test_limits_meant_for_applications_do_not_hold_for_us(database: str, connection: Connection) -> None:
    name = connection.info.dbname
    rows(connection, f"""
        ALTER DATABASE {name} SET statement_timeout TO '1ms'; ALTER DATABASE {name} SET lock_timeout TO '1ms';
        ALTER DATABASE {name} SET idle_in_transaction_session_timeout TO '5s';
        ALTER DATABASE {name} SET default_transaction_read_only TO on""")  # type: ignore[arg-type]
    with psycopg.connect(database, autocommit=True, options="-c statement_timeout=0") as ours:
        patient(ours)
        for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            assert rows(ours, "SELECT current_setting(%s)", (setting,)) == [("0",)]
        rows(ours, "CREATE TABLE public.t (n int)")


def test_sequences_go_by_value_whatever_they_are_called(connection: Connection) -> None:
    rows(connection, """
        CREATE SCHEMA "a b"; CREATE SEQUENCE "a b"."Q.""x"; CREATE SEQUENCE public.down INCREMENT -1;
        CREATE SEQUENCE public.fresh; CREATE TEMP SEQUENCE passing; CREATE UNLOGGED TABLE public.u (id bigserial);
        SELECT setval('"a b"."Q.""x"', 42, false), setval('public.down', -5), nextval('public.u_id_seq')""")
    before = by_value.read(connection)
    assert {one.name: (one.last_value, one.is_called) for one in before} == {
        '"a b"."Q.""x"': (42, False), "public.down": (-5, True), "public.fresh": (1, False),
        "public.u_id_seq": (1, True)}
    rows(connection, """
        SELECT nextval('"a b"."Q.""x"'), nextval('public.down'), nextval('public.fresh');
        SELECT setval('public.u_id_seq', 9)""")
    by_value.write(connection, before)
    assert by_value.read(connection) == before
    by_value.write(connection, ())


def test_a_portrait_brings_back_what_a_dump_forgets(postgres: PostgresNode, connection: Connection) -> None:
    name = connection.info.dbname
    rows(connection, f"""
        CREATE ROLE "Guest {name}"; ALTER DATABASE {name} SET search_path TO "A b", public, '$user';
        ALTER DATABASE {name} SET "TimeZone" TO 'Europe/Bucharest'; ALTER DATABASE {name} SET x.y TO 'a=b, "c"';
        ALTER ROLE "Guest {name}" IN DATABASE {name} SET temp_tablespaces TO '';
        ALTER ROLE "Guest {name}" IN DATABASE {name} SET search_path TO '';
        REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC; ALTER DATABASE {name} CONNECTION LIMIT 7;
        GRANT CREATE ON DATABASE {name} TO "Guest {name}" WITH GRANT OPTION;
        COMMENT ON DATABASE {name} IS 'It''s %s'""")  # type: ignore[arg-type]
    with catalogue.maintenance(postgres.url(name)) as beside:
        seen = portrait.read(beside, catalogue.oid_of(beside, name))
        assert len(seen.settings) == 5
        copy = catalogue.beside(name, "lych", "t")
        again = portrait.Portrait.of(seen.as_json())
        assert again == seen
        portrait.create(beside, copy, again)
        try:
            portrait.apply(beside, copy, again)
            assert portrait.read(beside, catalogue.oid_of(beside, copy)) == seen
        finally:
            catalogue.drop(beside, copy)
    with connect(postgres.url(name)) as fresh:
        assert rows(fresh, "SHOW search_path") == [('"A b", public, "$user"',)]


@pytest.fixture(scope="module")
def debian() -> Iterator[PostgresNode]:
    """PostgreSQL 15 with ICU, which the wheel's build lacks."""
    pg_bin = Path("/usr/lib/postgresql/15/bin")
    if not pg_bin.exists():
        lacks(f"needs PostgreSQL 15 in {pg_bin}")
    with open_directory() as directory, PostgresNode.start_new(directory, pg_bin=pg_bin) as node:
        yield node


@pytest.mark.parametrize(("server", "locale"), [
    ("postgres", "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"),
    ("postgres", "LOCALE 'C' ENCODING 'SQL_ASCII'"),
    ("debian", "LOCALE_PROVIDER icu ICU_LOCALE 'de-AT' LOCALE 'C'"),
])
def test_encoding_and_locale_are_part_of_the_portrait(
    request: pytest.FixtureRequest, server: str, locale: str
) -> None:
    with catalogue.maintenance(request.getfixturevalue(server).url("soul")) as beside:
        try:
            rows(beside, f"CREATE DATABASE sortable TEMPLATE template0 {locale}")  # type: ignore[arg-type]
            seen = portrait.read(beside, catalogue.oid_of(beside, "sortable"))
            portrait.create(beside, "sortable_copy", seen)
            assert portrait.read(beside, catalogue.oid_of(beside, "sortable_copy")) == seen
        finally:
            catalogue.drop(beside, "sortable")
            catalogue.drop(beside, "sortable_copy")


def test_two_renames_are_one_act_whoever_keeps_connecting(postgres: PostgresNode, connection: Connection) -> None:
    name = connection.info.dbname
    with catalogue.maintenance(postgres.url(name)) as beside:
        rows(beside, f"CREATE DATABASE {name}_new")  # type: ignore[arg-type]
        oids = (catalogue.oid_of(beside, name), catalogue.oid_of(beside, f"{name}_new"))
        catalogue.rename_both(beside, (name, f"{name}_old"), (f"{name}_new", name))
        assert tuple(catalogue.name_by(beside, oid) for oid in oids) == (f"{name}_old", name)
        with pytest.raises(psycopg.errors.DuplicateDatabase):
            catalogue.rename_both(beside, (name, f"{name}_x"), (f"{name}_old", "postgres"))
        assert tuple(catalogue.name_by(beside, oid) for oid in oids) == (f"{name}_old", name)
        catalogue.drop(beside, f"{name}_old")


def test_the_server_is_described_to_a_stranger_too(postgres: PostgresNode, connection: Connection) -> None:
    name = connection.info.dbname
    rows(connection, f"CREATE ROLE stranger_{name} LOGIN PASSWORD 'x'; CREATE UNLOGGED TABLE public.u (n int);"
                     "CREATE UNLOGGED TABLE public.v (n int); INSERT INTO public.v VALUES (1)")  # type: ignore[arg-type]
    mine = describe(connection)
    assert mine.superuser
    assert mine.data_directory == str(postgres.pgdata)
    assert mine.checksums
    with pytest.raises(Refused, match=r"the UNLOGGED table public\.v has rows"):
        losses.refuse(connection)
    address = make_conninfo(postgres.url(name), user=f"stranger_{name}", password="x")
    with connect(address) as guest:
        theirs = describe(guest)
    assert (theirs.superuser, theirs.checkpointer, theirs.creates_databases) == (False, False, False)
    assert theirs.data_directory == ""
    reports = dict(Soul.reports(Ground(url=address, pg_bin=postgres.pg_bin)))
    assert "data_directory" in str(reports["btrfs"])
    assert "CREATEDB" in str(reports["dump"])


def test_an_owner_who_may_create_databases_needs_no_superuser(postgres: PostgresNode, connection: Connection) -> None:
    name = connection.info.dbname
    rows(connection, f"CREATE ROLE owner_{name} LOGIN CREATEDB PASSWORD 'x'")  # type: ignore[arg-type]
    rows(connection, f"ALTER DATABASE {name} OWNER TO owner_{name}")  # type: ignore[arg-type]
    address = make_conninfo(postgres.url(name), user=f"owner_{name}", password="x")
    assert Soul.open(Ground(url=address, pg_bin=postgres.pg_bin), "auto", "refuse").driver.name == "dump"


def test_a_driver_that_does_not_fit_is_refused_with_every_reason(postgres: PostgresNode, database: str) -> None:
    ground = Ground(url=database, pg_bin=postgres.pg_bin)
    with pytest.raises(Refused, match="no Btrfs") as caught:
        Soul.open(ground, "btrfs", "refuse")
    assert caught.value.code == "driver-unavailable"
    assert "reflink=1" in str(dict(Soul.reports(ground))["reflink"] or "reflink=1")
    with pytest.raises(Refused, match="there is no driver"):
        Soul.open(ground, "tape", "refuse")
    with pytest.raises(Refused, match=r"btrfs: .* dump: pg_dump was not found"):
        Soul.open(Ground(url=database, pg_bin=postgres.pgdata), "auto", "refuse")


def test_an_old_pg_dump_does_not_fit(database: str, server_directory: Path) -> None:
    for name in ("pg_dump", "pg_restore"):
        program = server_directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 9.6.24'\n")
        program.chmod(0o755)
    reports = dict(Soul.reports(Ground(url=database, pg_bin=server_directory)))
    assert "of release 9, older than the server's 18" in str(reports["dump"])


def test_a_server_that_is_away_is_a_drivers_reason_for_the_doctor(postgres: PostgresNode) -> None:
    ground = Ground(url="postgresql://u@127.0.0.1:1/nowhere")
    assert all("cannot be reached" in str(reason) for _, reason in Soul.reports(ground))
    with pytest.raises(Away):
        Soul.open(ground, "auto", "refuse")
