"""`dump` as an ordinary role that owns its database: what it may do is asked first, and suffices for all of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from lych_checkpoint import restore
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.database import catalogue, connect, quiet, rows
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.soul import Soul
from ops.contract.place import captured
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until
from tests.fixtures.places import open_directory

#: Autovacuum looks every second and takes every table that changed.
_EAGER = {
    "autovacuum_naptime": "1", "autovacuum_vacuum_threshold": "0", "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_analyze_threshold": "0", "autovacuum_analyze_scale_factor": "0",
    "wal_level": "logical",
}
_numbers = itertools.count()


@dataclass(frozen=True)
class Tenant:
    """A database, its owner who may make databases and is nothing more, and a superuser's address."""

    name: str
    owner: str
    url: str
    superuser: str
    pg_bin: Path

    def as_superuser(self, statement: str) -> None:
        with connect(self.superuser) as connection:
            rows(connection, statement)  # type: ignore[arg-type]

    def soul(self, writers: str = "refuse") -> Soul:
        return Soul.open(Ground(url=self.url, pg_bin=self.pg_bin), "dump", writers)  # type: ignore[arg-type]

    def vacuumed(self) -> bool:
        with connect(self.superuser) as connection:
            return bool(rows(connection, """
                SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid
                WHERE a.datname = %s AND a.backend_type = 'autovacuum worker' AND l.mode = 'RowExclusiveLock'
                    AND l.relation >= 16384""", (self.name,))[0][0])


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresNode]:
    with open_directory() as directory, PostgresNode.start_new(directory, options=_EAGER) as node:
        with connect(node.url()) as connection:
            rows(connection, "SET allow_in_place_tablespaces TO on")
            rows(connection, "CREATE TABLESPACE elsewhere LOCATION ''")
        yield node


@pytest.fixture
def tenant(postgres: PostgresNode) -> Iterator[Tenant]:
    name = f"tenant{next(_numbers)}"
    owner = f"{name}_owner"
    with connect(postgres.url()) as connection:
        rows(connection, f"CREATE ROLE {owner} LOGIN CREATEDB PASSWORD 'x'")  # type: ignore[arg-type]
        rows(connection, f"CREATE DATABASE {name} OWNER {owner}")  # type: ignore[arg-type]
    superuser = postgres.url(name)
    yield Tenant(name, owner, make_conninfo(superuser, user=owner, password="x"), superuser, postgres.pg_bin)
    with connect(postgres.url()) as connection:
        for (database,) in rows(connection, "SELECT datname::text FROM pg_database WHERE starts_with(datname, %s)",
                                (name,)):
            rows(connection, f'DROP DATABASE "{database}" WITH (FORCE)')  # type: ignore[arg-type]


@pytest.fixture
def database(tenant: Tenant) -> str:
    """The federation's soul here."""
    return tenant.url


def fill(tenant: Tenant) -> None:
    """Make a table of many pages that autovacuum is long in, and a sequence and a large object."""
    with connect(tenant.url) as connection:
        rows(connection, """
            CREATE TABLE account (id serial PRIMARY KEY, text text)
                WITH (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
            INSERT INTO account (text) SELECT repeat('x', 900) FROM generate_series(1, 4000);
            SELECT lo_from_bytea(4711, 'kept')""")
        rows(connection, "UPDATE account SET text = 'y' || text")


def content(tenant: Tenant) -> tuple[object, ...]:
    with connect(tenant.url) as connection:
        return (*rows(connection, "SELECT count(*), md5(string_agg(text, ',' ORDER BY id)) FROM account")[0],
                *rows(connection, "SELECT last_value, lo_get(4711) FROM account_id_seq")[0])


def test_an_owner_goes_there_and_back_and_back_again_whatever_autovacuum_does(
    tenant: Tenant, opened: Callable[..., Federation]
) -> None:
    federation = opened(LYCH_DRIVER="dump")
    fill(tenant)
    wait_until(tenant.vacuumed)
    made = create(federation, Request())
    old = content(tenant)
    with connect(tenant.url) as connection:
        rows(connection, "DELETE FROM account WHERE id % 2 = 0")
        rows(connection, "SELECT nextval('account_id_seq'), lo_put(4711, 0, 'gone')")
    new = content(tenant)
    wait_until(tenant.vacuumed)
    restored = restore.restore(federation, made["id"])
    assert content(tenant) == old
    wait_until(tenant.vacuumed)
    restore.restore(federation, restored["safety"])
    assert content(tenant) == new


def test_autovacuum_is_no_writer_to_a_role_from_which_its_type_is_hidden(tenant: Tenant) -> None:
    fill(tenant)
    wait_until(tenant.vacuumed)
    with connect(tenant.url) as connection:
        for whole in (True, False):
            assert [one for one in quiet.look(connection, whole=whole).writers if tenant.name in one] == []
        assert tenant.vacuumed()


def test_databases_are_emptied_dropped_and_copied_under_autovacuum(tenant: Tenant) -> None:
    fill(tenant)
    with catalogue.maintenance(tenant.url) as connection:
        wait_until(tenant.vacuumed)
        catalogue.empty(connection, tenant.name)
        catalogue.copy(connection, tenant.name, f"{tenant.name}_copy", tenant.owner)
        wait_until(tenant.vacuumed)
        catalogue.drop(connection, tenant.name)
        assert catalogue.oid_of(connection, tenant.name) == 0


def test_a_superusers_session_stops_a_restore_before_anyone_is_frozen(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_PASSING_S", 0.1)
    with connect(tenant.superuser, name="psql of the admin"), catalogue.maintenance(tenant.url) as connection, \
            pytest.raises(Refused, match=r"user lych, application 'psql of the admin' may not be ended") as caught:
        assert any("could not end for a restore the session of pid" in line for line in tenant.soul().preflight())
        catalogue.refuse_unendable(connection, tenant.name)
    assert caught.value.code == "sessions-stay"
    assert "end it, or GRANT lych" in caught.value.mend


@pytest.mark.parametrize(("statement", "what", "code"), [
    ("CREATE TABLE t (); REVOKE ALL ON t FROM PUBLIC", "may not read table public.t", "unreadable"),
    ("CREATE SEQUENCE s", "may not read the sequence public.s", "unreadable"),
    ("SELECT lo_create(99)", "may not read large object 99", "unreadable"),
    ("CREATE SCHEMA closed; CREATE TABLE closed.t (); GRANT SELECT ON closed.t TO PUBLIC",
     "may not read table closed.t", "unreadable"),
    ("CREATE TABLE r (); GRANT SELECT ON r TO PUBLIC; ALTER TABLE r ENABLE ROW LEVEL SECURITY",
     "row security hides rows of public.r", "row-security"),
    ("ALTER SCHEMA public OWNER TO lych; GRANT USAGE ON SCHEMA public TO PUBLIC", "could not give schema public back",
     "unrestorable"),
    ("CREATE VIEW v AS SELECT 1", "could not give public.v back to its owner lych", "unrestorable"),
    ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "could not give function f() back to its owner",
     "unrestorable"),
    ("ALTER DATABASE {name} SET log_min_duration_statement TO 5", "setting log_min_duration_statement again",
     "unrestorable"),
    ("ALTER ROLE lych IN DATABASE {name} SET work_mem TO '5MB'", "setting work_mem of role lych", "unrestorable"),
    ("CREATE TABLE t () TABLESPACE elsewhere; ALTER TABLE t OWNER TO {name}_owner", "in the tablespace elsewhere",
     "unrestorable"),
    ("CREATE EXTENSION pageinspect", "may not install the extension pageinspect", "unrestorable"),
    ("CREATE SUBSCRIPTION news CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)",
     "the subscription news writes here", "subscription"),
])
def test_what_the_role_could_not_do_is_refused_before_the_freeze(
    tenant: Tenant, statement: str, what: str, code: str
) -> None:
    tenant.as_superuser(statement.format(name=tenant.name))
    try:
        with pytest.raises(Refused) as caught:
            tenant.soul().preflight()
        assert what in caught.value.what
        assert caught.value.code == code
        assert caught.value.mend
    finally:
        if code == "subscription":
            tenant.as_superuser("DROP SUBSCRIPTION news")
    assert tenant.name in caught.value.where


def test_a_role_that_may_make_no_databases_any_more_restores_nothing(tenant: Tenant, tmp_path: Path) -> None:
    with connect(tenant.url) as connection:
        rows(connection, "CREATE TABLE kept (n int)")
    soul = tenant.soul("note")
    facts = captured(soul, "c1", tmp_path / "soul")
    tenant.as_superuser(f"ALTER ROLE {tenant.owner} NOCREATEDB")
    with pytest.raises(Refused, match="permission denied to create database"):
        soul.stage(facts, tmp_path / "soul", "t1")
    soul.discard_stage(soul.plan_stage(facts, "t1"))
    assert f"ALTER ROLE {tenant.owner} CREATEDB" in str(soul.driver.probe())


def test_a_fence_that_the_role_may_not_raise_is_refused_before_the_freeze(tenant: Tenant) -> None:
    tenant.as_superuser("CREATE TABLE t (); GRANT SELECT ON t TO PUBLIC")
    with pytest.raises(Refused, match=r"may not fence the table public\.t") as caught:
        tenant.soul("fence").preflight()
    assert caught.value.code == "unreadable"


def test_a_logical_slot_is_named_in_a_warning_and_stays_with_the_displaced_data(
    tenant: Tenant, tmp_path: Path
) -> None:
    tenant.as_superuser("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    soul = tenant.soul("note")
    assert any("who reads from feed must begin anew" in line for line in soul.preflight())
    facts = captured(soul, "c1", tmp_path / "soul")
    staged = soul.stage(facts, tmp_path / "soul", "t1")
    soul.shut_out()
    soul.switch(staged)
    soul.let_in()
    assert _slots(tenant) == [(staged["old"],)]
    soul.discard(soul.displaced({**staged, "soul_generation": 0}, facts))
    assert _slots(tenant) == []


def _slots(tenant: Tenant) -> list[tuple[str]]:
    with connect(tenant.superuser) as connection:
        return rows(connection, "SELECT database::text FROM pg_replication_slots")  # type: ignore[return-value]
