"""I6: change one byte of a sealed checkpoint's files, add or remove one, and verify says which."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lych_checkpoint import records, seal
from lych_checkpoint.errors import Damage, Refused
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.vault import Vault
from tests.fixtures.sealed import key_of, make_checkpoint, some_lock, some_manifest

FILES = ["lychd.lock", "manifest.json", "seal", "body/core.bundle", "soul/tables/1.dat"]


@pytest.fixture
def folder(vault: Vault) -> Path:
    """A sealed checkpoint."""
    return vault.path(make_checkpoint(vault))


def damages(vault: Vault, folder: Path) -> list[str]:
    return seal.verify(folder, key_of(vault))


def test_what_was_sealed_is_whole(vault: Vault, folder: Path) -> None:
    assert damages(vault, folder) == []
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(FILES)
    assert sorted(vault.manifest(folder.name).files) == ["body/core.bundle", "lychd.lock", "soul/tables/1.dat"]


def test_the_lock_is_given_only_as_it_was_sealed(vault: Vault, folder: Path) -> None:
    assert seal.sealed_lock(folder, key_of(vault)) == BodyLock.loads((folder / "lychd.lock").read_text())
    assert seal.sealed_lock(folder, vault.root / "no-key") is None
    for name in ("lychd.lock", "manifest.json", "seal"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole.replace(b"a", b"b", 1))
        assert seal.sealed_lock(folder, key_of(vault)) is None
        (folder / name).unlink()
        assert seal.sealed_lock(folder, key_of(vault)) is None
        (folder / name).write_bytes(whole)
    (folder / "body/core.bundle").unlink()  # is not looked at
    assert seal.sealed_lock(folder, key_of(vault)) is not None


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_named(vault: Vault, folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1:])
    try:
        found = damages(vault, folder)
    finally:
        path.write_bytes(whole)
    assert any(name in one for one in found)
    assert damages(vault, folder) == []


@pytest.mark.parametrize("name", ["manifest.json", "seal"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.one_of(
    st.binary(max_size=80),
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5),
                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                 ).map(lambda value: json.dumps(value).encode()),
))
def test_any_junk_in_its_place_is_named(vault: Vault, folder: Path, name: str, junk: bytes) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(junk)
    try:
        assert any(name in one for one in damages(vault, folder))
    finally:
        path.write_bytes(whole)


def _every_change(record: dict[str, object]) -> list[dict[str, object]]:
    """Return the record with each field dropped, renamed, and given odd values."""
    changed = []
    for name in record:
        rest = {key: value for key, value in record.items() if key != name}
        changed += [rest, {**rest, name + "_": record[name]}, {**record, "extra": 1}]
        changed += [{**record, name: odd} for odd in (None, True, 1.0, -1, "", "\ud800", [], {}, float("nan"), [[]])]
    return [one for one in changed if json.dumps(one, sort_keys=True) != json.dumps(record, sort_keys=True)]


@pytest.mark.parametrize("name", ["manifest.json", "seal"])
def test_every_field_means_something(vault: Vault, folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for changed in _every_change(json.loads(whole)):
        path.write_bytes(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
        assert any(name in one for one in damages(vault, folder)), changed
    path.write_bytes(json.dumps(json.loads(whole), indent=1).encode())
    assert any(name in one for one in damages(vault, folder))
    path.write_bytes(b"[" * 100_000)
    assert any(name in one for one in damages(vault, folder))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(vault: Vault, folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert any(name in one and "missing" in one for one in damages(vault, folder))


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_named(vault: Vault, folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    assert any(name in one for one in damages(vault, folder))


ADDED = ["more", "body/more", "soul/tables/2.dat", "body/seal", "body/manifest.json", ".hidden"]


@pytest.mark.parametrize("name", ADDED)
def test_an_added_file_is_named(vault: Vault, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert damages(vault, folder) == [f"{name} was added"]


def test_added_files_that_are_none_are_named(vault: Vault, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "body" / "tree").symlink_to(folder / "soul")
    os.mkfifo(folder / "pipe")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_bytes(b"")
    found = damages(vault, folder)
    assert [one.split()[0] for one in found] == ["\\xff", "body/tree", "link", "pipe"]


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_named(vault: Vault, folder: Path) -> None:
    path = folder / "body" / "core.bundle"
    path.rename(folder.parent / "core.bundle")
    path.symlink_to(folder.parent / "core.bundle")
    assert len(damages(vault, folder)) == 2


def test_a_renamed_checkpoint_is_named(vault: Vault, folder: Path) -> None:
    renamed = folder.rename(folder.with_name("20200101T000000000000Z-000000"))
    assert any(folder.name in one for one in damages(vault, renamed))


@pytest.mark.parametrize("names", [["manifest.json"], ["seal"], ["lychd.lock"], ["manifest.json", "seal"], FILES])
def test_files_of_another_checkpoint_do_not_pass(vault: Vault, folder: Path, names: list[str]) -> None:
    other = vault.path(make_checkpoint(vault, reason="another"))
    for name in names:
        shutil.copy(other / name, folder / name)
    assert damages(vault, folder)
    assert damages(vault, other) == []


def test_a_lock_of_another_body_is_damage_even_when_sealed(vault: Vault) -> None:
    with vault.partial("1") as partial:
        lock = some_lock("1")
        (partial / "lychd.lock").write_text(lock.dumps())
        seal.seal(partial, some_manifest("1", lock, repos={"core": "f" * 40}), key_of(vault))
        vault.publish("1")
    assert damages(vault, vault.path("1")) == ["lychd.lock and manifest.json speak of different bodies"]


def test_another_key_does_not_pass(vault: Vault, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "keys" / "other.pem"
    seal.make_key(other)
    assert any("another key" in one for one in seal.verify(folder, other))
    # Signed anew with another key, after a change: still not ours.
    (folder / "body" / "core.bundle").write_bytes(b"evil")
    seal.seal(folder, vault.manifest(folder.name), other)
    assert any("another key" in one for one in damages(vault, folder))


def test_a_later_release_reads_what_this_one_sealed(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (records, seal):
        monkeypatch.setattr(room, "RELEASE", "0.1.1")
    assert damages(vault, folder) == []
    assert vault.manifest(folder.name).release == "0.1.0"
    newer = vault.path(make_checkpoint(vault))
    assert vault.manifest(newer.name).release == "0.1.1"
    monkeypatch.undo()
    assert damages(vault, newer) == []


def test_a_newer_version_is_refused_by_its_release(vault: Vault, folder: Path) -> None:
    path = folder / "manifest.json"
    record = {**json.loads(path.read_bytes()), "version": 2, "release": "9.9"}
    path.write_bytes(records.canonical(record))
    assert "9.9" in damages(vault, folder)[0]
    with pytest.raises(Damage, match=r"9\.9"):
        vault.manifest(folder.name)


def test_the_key_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "ed25519.pem"
    seal.make_key(path)
    text = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    seal.make_key(path)
    assert path.read_bytes() == text


@pytest.mark.parametrize(("text", "code"), [
    (None, "key-missing"), (b"", "key-unreadable"), (b"no key", "key-unreadable"),
    (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key-unreadable"),
])
def test_a_bad_key_is_refused(vault: Vault, folder: Path, text: bytes | None, code: str) -> None:
    key_of(vault).unlink()
    if text is not None:
        key_of(vault).write_bytes(text)
    with pytest.raises(Refused) as caught:
        damages(vault, folder)
    assert caught.value.code == code
    if text is not None:
        with pytest.raises(Refused):
            seal.make_key(key_of(vault))


def test_what_is_no_file_cannot_be_sealed(vault: Vault) -> None:
    def make() -> None:
        with vault.partial("1") as partial:
            (partial / "soul" / "link").symlink_to("/etc/passwd")
            lock = some_lock("1")
            (partial / "lychd.lock").write_text(lock.dumps())
            seal.seal(partial, some_manifest("1", lock), key_of(vault))

    with pytest.raises(Refused, match="soul/link"):
        make()
    assert vault.ids() == []
