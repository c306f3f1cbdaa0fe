"""The gate's verdicts, and what it says to people who brought back only a part with their own tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

import lych_checkpoint
from lych_checkpoint import coordinator, gate, journal, restore, setup, witness
from lych_checkpoint.database import connect
from lych_checkpoint.errors import CheckpointError, GateRefused, GateUnsure
from lych_checkpoint.evolution import imprint
from lych_checkpoint.federation import Federation
from ops.servers.postgres import PostgresNode
from tests.fixtures.federation import commit, git, make_repository

Opened = Callable[..., Federation]
SECOND = {"alpha/__init__.py": "VERSION = 2\n"}


def refused(federation: Federation, code: str) -> CheckpointError:
    """Check the gate's code, its exit code, and that it names a mending command; return the error."""
    with pytest.raises((GateRefused, GateUnsure)) as caught:
        gate.check(federation)
    assert caught.value.code == code
    assert caught.value.mend
    return caught.value


def evolve(federation: Federation, root: Path) -> str:
    """Commit a second version of alpha and let the gate imprint it."""
    made = commit(root / "extensions" / "alpha", SECOND)
    gate.check(federation)
    return made


def test_equal_trees_are_aligned_whatever_their_history(opened: Opened, federation_root: Path) -> None:
    federation = opened()
    before = gate.check(federation)
    git(federation_root / "core", "commit", "-q", "--amend", "-m", "the same, told otherwise")
    after = gate.check(federation)
    assert (after.verdict, after.repos["core"].verdict, after.generation) == ("aligned", "aligned", before.generation)
    assert after.repos["core"].disk != after.repos["core"].witness


def test_a_new_repository_counts_as_ahead_and_is_imprinted(opened: Opened, federation_root: Path) -> None:
    federation = opened()
    before = gate.check(federation)
    make_repository(federation_root / "extensions" / "gamma", {"README": "gamma\n"})
    report = gate.check(federation)
    assert (report.verdict, report.repos["extensions/gamma"].verdict) == ("ahead", "extra")
    assert report.generation == before.generation + 1
    assert gate.check(federation).verdict == "aligned"


@pytest.mark.parametrize("harm", ["diverged", "unknown", "behind"])
def test_code_that_went_another_way_is_refused(harm: str, opened: Opened, federation_root: Path) -> None:
    federation, alpha = opened(), federation_root / "extensions" / "alpha"
    first = git(alpha, "rev-parse", "HEAD")
    second = evolve(federation, federation_root)
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})  # ahead: the worst decides
    git(alpha, "reset", "-q", "--hard", first)
    if harm == "unknown":
        git(alpha, "reflog", "expire", "--expire=now", "--all")
        git(alpha, "gc", "-q", "--prune=now")
    elif harm == "diverged":
        commit(alpha, {"alpha/__init__.py": "VERSION = 3\n"})
    error = refused(federation, f"gate-{harm}")
    assert error.exit_code == 78
    assert error.where == "extensions/alpha"
    assert git(alpha, "rev-parse", "HEAD")[:12] in error.what
    assert second[:12] in error.what
    assert error.facts["repos"]["core"]["verdict"] == "ahead"


@pytest.mark.parametrize("way", ["--clean into it", "into a new database", "into a new database, code too"])
def test_data_that_somebodys_own_pg_restore_brought_back_are_refused(
    way: str, opened: Opened, federation_root: Path, database: str, postgres: PostgresNode, tmp_path: Path
) -> None:
    federation, name = opened(), database.rpartition("/")[2]
    gate.check(federation)
    postgres.run("pg_dump", "-Fc", "-f", str(tmp_path / "dump"), name)
    evolve(federation, federation_root)
    if way.startswith("into"):
        postgres.run("psql", "-qc", f"drop database {name} with (force)", "postgres")
        postgres.run("createdb", name)
    postgres.run("pg_restore", "--clean", "--if-exists", "-d", name, str(tmp_path / "dump"))
    if way.endswith("code too"):
        git(federation_root / "extensions" / "alpha", "checkout", "-q", "HEAD~1")
    error = refused(federation, "gate-copied" if way.endswith("code too") else "gate-rewound")
    assert error.exit_code == 78
    assert gate.adopt(federation, "this is what we want").verdict == "aligned"
    assert gate.check(federation).verdict == "aligned"


def test_a_copied_database_is_refused_and_the_original_is_not(
    opened: Opened, database: str, postgres: PostgresNode
) -> None:
    federation, name = opened(), database.rpartition("/")[2]
    gate.check(federation)
    postgres.run("createdb", "-T", name, f"{name}_copy")
    try:
        assert refused(opened(LYCH_DATABASE_URL=postgres.url(f"{name}_copy")), "gate-copied").exit_code == 78
        assert gate.check(federation).verdict == "aligned"
    finally:
        postgres.run("dropdb", f"{name}_copy")


def test_a_role_that_sees_less_of_the_server_still_passes(
    opened: Opened, database: str, postgres: PostgresNode
) -> None:
    federation, name = opened(), database.rpartition("/")[2]
    gate.check(federation)
    role = f"{name}_app"
    with psycopg.connect(database) as connection:
        connection.execute(f"create role {role} login password 'x'")  # type: ignore[arg-type]
        connection.execute(f"grant usage on schema lych to {role}; "  # type: ignore[arg-type]
                           f"grant all on lych.witness to {role}")
    try:
        url = database.replace(database.partition("//")[2].partition("@")[0], f"{role}:x")
        assert gate.check(opened(LYCH_DATABASE_URL=url)).verdict == "aligned"
    finally:
        with psycopg.connect(database) as connection:
            connection.execute(f"drop owned by {role}; drop role {role}")  # type: ignore[arg-type]


def test_an_older_vault_is_refused_if_a_restore_is_missing_from_it_and_catches_up_with_an_imprint(
    opened: Opened, federation_root: Path, tmp_path: Path
) -> None:
    federation, vault = opened(), tmp_path / "vault"
    checkpoint = coordinator.create(federation, coordinator.Request())["id"]
    shutil.copytree(vault, tmp_path / "older")
    report = gate.check(federation)
    evolve(federation, federation_root)
    shutil.rmtree(vault)
    shutil.copytree(tmp_path / "older", vault)
    assert gate.check(federation).generation == report.generation + 1
    assert [line["kind"] for line in federation.vault.lineage()] == ["init", "catch-up"]
    restore.restore(federation, checkpoint)
    assert gate.check(federation).verdict == "aligned"
    shutil.rmtree(vault)
    shutil.copytree(tmp_path / "older", vault)
    assert refused(federation, "gate-vault-older").exit_code == 78
    gate.adopt(federation, "the vault's disk died")
    assert gate.check(federation).verdict == "aligned"


@pytest.fixture
def theirs(opened: Opened, postgres: PostgresNode, database: str, tmp_path: Path) -> Iterator[str]:
    """The vault of another federation."""
    other, vault = f"{database.rpartition('/')[2]}_other", str(tmp_path / "theirs")
    postgres.run("createdb", other)
    try:
        setup.init(opened(LYCH_DATABASE_URL=postgres.url(other), LYCH_VAULT=vault))
        yield vault
    finally:
        postgres.run("dropdb", other)


def test_another_federations_vault_is_refused(opened: Opened, theirs: str) -> None:
    gate.check(opened())
    assert refused(opened(LYCH_VAULT=theirs), "gate-foreign").exit_code == 78


def test_data_without_a_witness_are_others_where_the_vault_has_a_past(
    opened: Opened, postgres: PostgresNode, database: str, federation_root: Path
) -> None:
    federation, name = opened(), database.rpartition("/")[2]
    gate.check(federation)
    made = coordinator.create(federation, coordinator.Request())["id"]
    postgres.run("psql", "-qc", f"drop database {name} with (force)", "postgres")
    postgres.run("createdb", name)
    assert refused(federation, "gate-no-witness").exit_code == 78
    with pytest.raises(GateRefused, match="no witness"):
        gate.adopt(federation, "they are new")
    restore.restore(federation, made)  # what the refusal advises
    assert gate.check(federation).verdict == "aligned"


def test_nothing_is_adopted_into_another_federations_vault(opened: Opened, theirs: str) -> None:
    federation = opened()
    gate.check(federation)
    foreign = opened(LYCH_VAULT=theirs)
    before = list(foreign.vault.lineage())
    with pytest.raises(GateRefused) as caught:
        gate.adopt(foreign, "the wrong vault")
    assert caught.value.code == "gate-foreign"
    assert list(foreign.vault.lineage()) == before
    assert gate.check(federation).verdict == "aligned"


@pytest.mark.parametrize("how", ["removed", "rewritten"])
def test_a_removed_extension_and_a_rewritten_history_are_adopted(
    how: str, opened: Opened, federation_root: Path
) -> None:
    federation, alpha = opened(), federation_root / "extensions" / "alpha"
    evolve(federation, federation_root)
    if how == "removed":
        shutil.rmtree(alpha)
    else:
        git(alpha, "commit", "-q", "--amend", "-m", "told otherwise", "--allow-empty")
        (alpha / "README").write_text("and another text\n")
        git(alpha, "commit", "-q", "--amend", "-a", "-m", "told otherwise")
    before = refused(federation, "gate-missing" if how == "removed" else "gate-diverged")
    assert before.exit_code == 78
    adopted = gate.adopt(federation, f"it was {how}")
    assert adopted.verdict == "aligned"
    assert ("extensions/alpha" in adopted.repos) == (how == "rewritten")
    assert gate.check(federation).generation == adopted.generation
    assert list(federation.vault.lineage())[-1]["reason"] == f"it was {how}"


def test_a_restore_that_is_open_is_waited_for(opened: Opened, federation_root: Path, database: str) -> None:
    federation = opened()
    gate.check(federation)
    with connect(database) as connection:
        known = witness.read(connection)
        assert known is not None
        witness.mark_restoring(connection, generation=known.generation + 1, signature=known.signature,
                               repos=known.repos, journal="t-1")
    assert gate.check(federation).verdict == "aligned"
    commit(federation_root / "extensions" / "alpha", SECOND)
    assert refused(federation, "restore-open").exit_code == 75  # never "ahead" while it says so
    journal.begin(federation.vault, checkpoint="c-1", ticket="t-1", generation=known.generation + 1, epoch=0)
    git(federation_root / "extensions" / "alpha", "checkout", "-q", "HEAD~1")
    assert gate.check(federation).verdict == "aligned"
    for phase in ("closing", "switching"):
        journal.advance(federation.vault, phase)
        assert refused(federation, "restore-open").exit_code == 75


def test_an_imprint_that_was_rolled_back_does_not_make_the_data_look_rewound(
    opened: Opened, federation_root: Path, database: str
) -> None:
    federation = opened()
    gate.check(federation)
    commit(federation_root / "extensions" / "alpha", SECOND)
    with psycopg.connect(database) as migration:
        imprint(migration)
        migration.rollback()
    assert gate.check(federation).verdict == "ahead"


def test_gates_at_once_after_an_upgrade_all_pass(opened: Opened, federation_root: Path) -> None:
    federation = opened()
    generation = gate.check(federation).generation
    for number in range(5):
        commit(federation_root / "extensions" / "alpha", {"alpha/__init__.py": f"VERSION = {number + 2}\n"})
        with ThreadPoolExecutor(8) as pool:
            reports = list(pool.map(lambda _: gate.check(opened()), range(8)))
        assert {report.generation for report in reports} == {generation + number + 1}


def test_a_web_process_asks_the_gate_by_its_public_name(opened: Opened, federation_root: Path) -> None:
    opened()
    assert lych_checkpoint.gate.check().verdict == "aligned"
    evolve(opened(), federation_root)
    git(federation_root / "extensions" / "alpha", "checkout", "-q", "HEAD~1")
    with pytest.raises(GateRefused):
        lych_checkpoint.gate.check()
