"""The vault: what is in it is whole and sealed, or it is not a checkpoint."""

from __future__ import annotations

import itertools
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lych_checkpoint.errors import Away, CheckpointError, Damage, Refused
from lych_checkpoint.vault import Vault, write_atomic
from tests.fixtures.children import in_child
from tests.fixtures.lacking import need_root
from tests.fixtures.sealed import key_of, make_checkpoint

NOBODY = 65534


def test_init_makes_private_directories_and_may_be_repeated(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "deep" / "vault")
    vault.init()
    make = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [vault.root, *vault.root.iterdir()]}
    assert make == dict.fromkeys(["vault", "checkpoints", "keys", "notes", "run"], 0o700)
    (vault.root / "notes" / "kept").write_text("kept")
    vault.init()
    vault.open()
    assert (vault.root / "notes" / "kept").read_text() == "kept"


def test_a_vault_that_was_never_set_up_is_away(tmp_path: Path) -> None:
    with pytest.raises(Away, match="lych-checkpoint init") as caught:
        Vault(tmp_path / "none").open()
    assert (caught.value.code, caught.value.exit_code) == ("vault-away", 75)
    with pytest.raises(Away):
        Vault(tmp_path / "none").ids()


def test_a_file_in_the_vaults_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "vault").write_text("")
    with pytest.raises(Away, match="vault"):
        Vault(tmp_path / "vault").init()


def test_another_users_vault_is_refused_by_name(tmp_path: Path, server_directory: Path) -> None:
    need_root()
    vault = Vault(server_directory / "vault")
    vault.init()
    make = Vault(server_directory / "other")
    for act in (vault.open, vault.ids, vault.rows, make.init):
        error = in_child(act, uid=NOBODY)
        assert isinstance(error, CheckpointError), error
        assert str(server_directory) in error.where
        assert error.mend
    vault.root.chmod(0o755)
    error = in_child(vault.open, uid=NOBODY)
    assert isinstance(error, Refused)
    assert error.code == "vault-unwritable"


def test_ids_sort_by_time_even_within_a_microsecond_of_each_other(vault: Vault) -> None:
    start = datetime(2026, 11, 23, 13, 43, 37, 999_999, tzinfo=UTC)
    moments = [start + timedelta(microseconds=step) for step in (0, 1, 2, 1_000_000, 86_400_000_000)]
    ids = [vault.new_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261123T134337999999Z-")
    assert vault.new_id(start) != vault.new_id(start)


def test_published_files_are_private(vault: Vault) -> None:
    folder = vault.path(make_checkpoint(vault))
    for parent, _, files in os.walk(folder):
        assert stat.S_IMODE(Path(parent).stat().st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE((Path(parent) / name).stat().st_mode) == 0o600


def test_a_failed_attempt_leaves_nothing_and_its_own_error(vault: Vault) -> None:
    with pytest.raises(ZeroDivisionError), vault.partial("1") as partial:
        (partial / "soul" / "half").write_bytes(b"half")
        raise ZeroDivisionError
    assert list((vault.root / "checkpoints").iterdir()) == []


def test_a_partial_that_cannot_be_removed_does_not_hide_the_first_error(vault: Vault) -> None:
    def fail() -> None:
        with vault.partial("1") as partial:
            (partial / "soul" / "half").write_bytes(b"half")
            partial.rename(partial.with_name("elsewhere"))
            raise ZeroDivisionError("the first")

    with pytest.raises(ZeroDivisionError, match="the first") as caught:
        fail()
    assert "could not be removed" in caught.value.__notes__[0]


def test_errors_of_other_places_are_not_called_the_vaults(vault: Vault) -> None:
    with pytest.raises(FileNotFoundError), vault.partial("1"):
        Path("/nowhere/at/all").read_bytes()
    with pytest.raises(ConnectionRefusedError), vault.partial("2"):
        raise ConnectionRefusedError("a server said no")


def test_leftovers_are_no_checkpoints_and_are_swept(vault: Vault) -> None:
    sealed = make_checkpoint(vault)
    left = vault.root / "checkpoints" / "20200101T000000000000Z-000000.partial"
    (left / "body").mkdir(parents=True)
    (left / "seal").write_text("even with a seal in it")
    assert vault.ids() == [sealed]
    let_go: list[str] = []

    def fail(name: str) -> None:
        let_go.append(name)
        raise KeyError(name)

    with pytest.raises(KeyError):
        vault.sweep(fail)
    assert vault.sweep(let_go.append) == [f"{left.name}.swept.partial"]
    assert vault.sweep(let_go.append) == []
    assert let_go == ["20200101T000000000000Z-000000"] * 2
    assert vault.ids() == [path.name for path in left.parent.iterdir()] == [sealed]


def test_an_attempt_may_be_made_again_after_a_kill(vault: Vault) -> None:
    (vault.root / "checkpoints" / "1.partial" / "body").mkdir(parents=True)
    (vault.root / "checkpoints" / "1.partial" / "stale").write_text("")
    with vault.partial("1") as partial:
        assert sorted(path.name for path in partial.iterdir()) == ["body", "soul"]


def test_a_rename_that_is_not_durable_is_taken_back(server_directory: Path) -> None:
    need_root()
    vault = Vault(server_directory / "vault")
    vault.init()
    folder = vault.root / "checkpoints" / "1.partial"
    folder.mkdir()
    (folder / "seal").write_text("")
    for path in (vault.root, vault.root / "checkpoints", folder, folder / "seal"):
        os.chown(path, NOBODY, NOBODY)
    # Renaming needs write and search; opening for fsync needs read, so only the last step fails.
    (vault.root / "checkpoints").chmod(0o300)
    error = in_child(lambda: vault.publish("1"), uid=NOBODY)
    assert isinstance(error, Refused)
    (vault.root / "checkpoints").chmod(0o700)
    assert vault.ids() == []
    assert folder.is_dir()


def test_a_full_disk_leaves_the_old_file(vault: Vault) -> None:
    path = vault.root / "notes" / "note.json"
    write_atomic(path, b"old")
    error = in_child(lambda: write_atomic(path, b"x" * 100_000), largest_file_bytes=50_000)
    assert isinstance(error, Refused)
    assert error.code == "vault-full"
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_real_full_file_system_refuses_and_leaves_no_checkpoint(small_disk: Path) -> None:
    vault = Vault(small_disk / "vault")
    vault.init()

    def fill() -> None:
        with vault.partial("1") as partial:
            for number in itertools.count():
                (partial / "soul" / str(number)).write_bytes(bytes(65536))

    with pytest.raises(Refused) as caught:
        fill()
    assert caught.value.code == "vault-full"
    assert list((vault.root / "checkpoints").iterdir()) == []
    vault.open()


def test_write_atomic_keeps_the_mode_whatever_the_umask(vault: Vault) -> None:
    path = vault.root / "lychd.lock"

    def write() -> None:
        os.umask(0o077)
        write_atomic(path, b"text", mode=0o644)

    assert in_child(write) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_vault_belongs_to_one_federation(vault: Vault) -> None:
    assert vault.read_federation() is None
    vault.write_federation("crypt", "u-1")
    vault.write_federation("crypt", "u-1")
    with pytest.raises(Refused) as caught:
        vault.write_federation("crypt", "u-2")
    assert caught.value.code == "foreign-vault"
    known = vault.read_federation()
    assert known is not None
    assert known["uuid"] == "u-1"


BROKEN = ["", "[]", "7", "{", '{"version":2,"release":"9.9"}', '{"version":1}', '{"version":true}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_record_is_damage(vault: Vault, text: str) -> None:
    (vault.root / "federation.json").write_text(text)
    with pytest.raises(Damage, match=r"federation\.json"):
        vault.read_federation()


def test_a_newer_record_is_refused_by_its_release(vault: Vault) -> None:
    (vault.root / "federation.json").write_text('{"version":2,"release":"9.9"}')
    with pytest.raises(Damage, match=r"9\.9") as caught:
        vault.read_federation()
    assert caught.value.code == "unknown-version"


def test_seals_are_chained(vault: Vault) -> None:
    assert vault.last_seal() == ""
    first = make_checkpoint(vault)
    after_first = vault.last_seal()
    second = make_checkpoint(vault)
    assert vault.manifest(first).previous == ""
    assert vault.manifest(second).previous == after_first != vault.last_seal()
    assert key_of(vault).stat().st_mode & 0o077 == 0
