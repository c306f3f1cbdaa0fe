"""The witness on a real server: made once, moved by imprints, marked by restores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from lych_checkpoint import witness
from lych_checkpoint.database import Connection, connect, rows, underlying
from lych_checkpoint.errors import Damage, Refused, RestoreOpen

ONE = {"core": {"commit": "a" * 40, "tree": "b" * 40}}
TWO = {"core": {"commit": "c" * 40, "tree": "d" * 40}, "extensions/é": {"commit": "e" * 40, "tree": "f" * 40}}


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as made:
        yield made


@pytest.fixture
def born(connection: Connection) -> witness.Witness:
    return witness.init(connection, "daemon")


def test_data_without_a_witness_say_so(connection: Connection) -> None:
    assert witness.read(connection) is None
    rows(connection, "CREATE SCHEMA lych")
    assert witness.read(connection) is None


def test_init_makes_one_row_and_is_idempotent(connection: Connection, born: witness.Witness) -> None:
    assert (born.generation, born.state, born.signature, born.repos, born.journal) == (0, "awake", "", {}, "")
    assert len(born.uuid) == 32
    assert witness.init(connection, "daemon") == born == witness.read(connection)
    with pytest.raises(psycopg.errors.IntegrityError):
        rows(connection, "INSERT INTO lych.witness (version, release, federation, uuid) VALUES (1, '', '', '')")


def test_init_by_many_processes_at_once_gives_one_uuid(database: str) -> None:
    def one(_: int) -> str:
        with connect(database) as mine:
            return witness.init(mine, "daemon").uuid

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(16)))) == 1


def test_init_refuses_the_data_of_another_federation(connection: Connection, born: witness.Witness) -> None:
    with pytest.raises(Refused, match="'daemon', not 'other'") as caught:
        witness.init(connection, "other")
    assert caught.value.code == "foreign-federation"


def test_an_imprint_moves_the_generation_and_the_same_body_does_not(
    connection: Connection, born: witness.Witness
) -> None:
    first = witness.imprint(connection, "sha256:1", ONE)
    assert (first.generation, first.signature, first.repos, first.state) == (1, "sha256:1", ONE, "awake")
    assert witness.imprint(connection, "sha256:1", ONE) == first
    second = witness.imprint(connection, "sha256:2", TWO)
    assert (second.generation, second.repos) == (2, TWO)
    assert witness.read(connection) == second


def test_an_imprint_without_witness_is_refused(connection: Connection) -> None:
    with pytest.raises(Refused) as caught:
        witness.imprint(connection, "sha256:1", ONE)
    assert caught.value.code == "no-witness"


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
def test_an_imprint_belongs_to_the_migrations_transaction(
    database: str, connection: Connection, born: witness.Witness, autocommit: bool, ends: str
) -> None:
    with psycopg.connect(database, autocommit=autocommit, row_factory=dict_row) as migration:
        if autocommit:
            migration.execute("BEGIN")
        witness.imprint(migration, "sha256:1", ONE)  # even as the transaction's first statement
        migration.execute("CREATE TABLE public.migrated (n int)")
        seen = witness.read(connection)
        assert seen is not None
        assert seen.generation == 0
        migration.execute(ends)
    seen = witness.read(connection)
    assert seen is not None
    assert seen.generation == (1 if ends == "COMMIT" else 0)
    assert rows(connection, "SELECT to_regclass('public.migrated') IS NOT NULL") == [(ends == "COMMIT",)]


def test_imprints_at_once_wait_for_each_other(database: str, connection: Connection, born: witness.Witness) -> None:
    def one(n: int) -> int:
        with connect(database) as mine:
            return witness.imprint(mine, f"sha256:{n}", ONE).generation

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(one, range(12))) == list(range(1, 13))


def test_a_restore_marks_and_wakes_exactly_its_own_data(connection: Connection, born: witness.Witness) -> None:
    marked = witness.mark_restoring(connection, generation=7, signature="sha256:2", repos=TWO, journal="r1")
    assert (marked.generation, marked.restored, marked.state, marked.journal) == (7, 7, "restoring", "r1")
    assert marked.repos == TWO
    with pytest.raises(RestoreOpen):
        witness.imprint(connection, "sha256:3", ONE)
    with pytest.raises(Refused) as caught:
        witness.mark_awake(connection, "r2")
    assert caught.value.code == "foreign-journal"
    awake = witness.mark_awake(connection, "r1")
    assert (awake.state, awake.journal, awake.generation, awake.restored) == ("awake", "", 7, 7)
    assert witness.mark_awake(connection, "r1") == awake
    assert witness.imprint(connection, "sha256:3", ONE).restored == 7


def test_the_epoch_only_grows(connection: Connection, born: witness.Witness) -> None:
    for epoch in (5, 9, 3):
        witness.write_epoch(connection, epoch)
    seen = witness.read(connection)
    assert seen is not None
    assert seen.epoch == 9


def test_a_newer_witness_is_refused_by_the_name_of_its_release(connection: Connection, born: witness.Witness) -> None:
    rows(connection, "ALTER TABLE lych.witness ADD COLUMN shiny int; "
                     "UPDATE lych.witness SET version = 2, release = '9.9.0'")
    for act in (witness.read, lambda c: witness.init(c, "daemon"), lambda c: witness.imprint(c, "s", ONE)):
        with pytest.raises(Damage, match=r"9\.9\.0") as caught:
            act(connection)
        assert caught.value.code == "unknown-version"


@pytest.mark.parametrize("harm", ["DROP COLUMN epoch", "ADD COLUMN odd int", "ALTER COLUMN epoch TYPE text"])
def test_a_malformed_witness_is_damage(connection: Connection, born: witness.Witness, harm: str) -> None:
    rows(connection, f"ALTER TABLE lych.witness {harm}")  # type: ignore[arg-type]
    with pytest.raises(Damage):
        witness.read(connection)


def test_a_callers_own_json_loader_does_no_harm(database: str, born: witness.Witness) -> None:
    with connect(database) as mine:
        set_json_loads(lambda text: ("mine", json.loads(text)), mine)
        assert witness.read(mine) == born


def test_an_imprint_goes_through_sqlalchemy(database: str, connection: Connection, born: witness.Witness) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as outer:
            witness.imprint(underlying(outer), "sha256:1", ONE)
            outer.rollback()
        assert witness.read(connection) == born
        with orm.Session(engine) as session:
            witness.imprint(underlying(session), "sha256:1", ONE)
            session.commit()
    finally:
        engine.dispose()
    seen = witness.read(connection)
    assert seen is not None
    assert seen.generation == 1


def test_what_holds_no_psycopg_connection_is_refused() -> None:
    with pytest.raises(Refused, match="holds no psycopg connection"):
        underlying(object())
