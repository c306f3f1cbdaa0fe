"""What a person may call a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lych_checkpoint.errors import Damage, UnknownName
from lych_checkpoint.vault import Vault
from tests.fixtures.sealed import make_checkpoint


def test_latest_counts_back_past_safety_copies(vault: Vault) -> None:
    first, second = make_checkpoint(vault), make_checkpoint(vault)
    safety = make_checkpoint(vault, safety=True)
    assert [vault.resolve(name).id for name in ("latest", "latest~0", "latest~1", safety)] == [
        second, second, first, safety]
    with pytest.raises(UnknownName, match="only 2") as caught:
        vault.resolve("latest~2")
    assert (caught.value.code, caught.value.exit_code) == ("unknown-name", 2)


def test_an_empty_vault_has_no_latest(vault: Vault) -> None:
    with pytest.raises(UnknownName, match="only 0"):
        vault.resolve("latest")


def test_id_prefix_and_label(vault: Vault) -> None:
    one, two = make_checkpoint(vault, label="before"), make_checkpoint(vault)
    assert vault.resolve(one).id == one
    assert vault.resolve("before").id == one
    assert vault.resolve(two[:-1]).id == two
    with pytest.raises(UnknownName) as caught:
        vault.resolve(one[:8])
    assert caught.value.code == "ambiguous-name"
    assert one in caught.value.what
    assert two in caught.value.what


def test_a_label_that_several_carry_is_ambiguous(vault: Vault) -> None:
    ids = [make_checkpoint(vault, label="twice") for _ in range(2)]
    with pytest.raises(UnknownName) as caught:
        vault.resolve("twice")
    assert caught.value.code == "ambiguous-name"
    assert all(one in caught.value.what for one in ids)


def test_of_many_that_fit_the_newest_are_listed(vault: Vault) -> None:
    ids = [make_checkpoint(vault) for _ in range(7)]
    with pytest.raises(UnknownName, match=r"7 checkpoints fit.*older") as caught:
        vault.resolve(ids[0][:8])
    assert ids[-1] in caught.value.what
    assert ids[0] not in caught.value.what


def test_an_unknown_name_is_told_the_nearest(vault: Vault) -> None:
    make_checkpoint(vault, label="before-upgrade")
    with pytest.raises(UnknownName, match="did you mean before-upgrade") as caught:
        vault.resolve("befor-upgrade")
    assert caught.value.mend == "lych-checkpoint list"


ODD = ["", ".", "..", "../keys", "/", "latest~", "latest~-1", "latest~x", "202", "\0", "a/b"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_unknown(vault: Vault, name: str) -> None:
    make_checkpoint(vault)
    with pytest.raises(UnknownName):
        vault.resolve(name)


def test_a_damaged_newest_is_never_replaced_by_an_older_one(vault: Vault) -> None:
    make_checkpoint(vault)
    newest = make_checkpoint(vault)
    (vault.path(newest) / "manifest.json").write_bytes(b"{}")
    for name in ("latest", newest, newest[:-1]):
        with pytest.raises(Damage, match=newest):
            vault.resolve(name)


def test_a_checkpoint_whose_seal_is_gone_is_damage_by_its_id(vault: Vault) -> None:
    one = make_checkpoint(vault)
    (vault.path(one) / "seal").unlink()
    with pytest.raises(Damage) as caught:
        vault.resolve(one)
    assert (caught.value.code, caught.value.exit_code) == ("seal-missing", 3)


def cache(vault: Vault) -> Path:
    return vault.root / "notes" / "list.cache"


def test_rows_follow_the_vault_with_and_without_their_cache(vault: Vault) -> None:
    assert vault.rows() == {}
    ids = [make_checkpoint(vault, label=f"n{number}") for number in range(3)]
    expected = {one: vault.manifest(one).as_json() for one in ids}
    for _ in range(2):
        assert vault.rows() == expected
        assert list(vault.rows()) == ids
    assert cache(vault).exists()
    for broken in (b"", b"\n", cache(vault).read_bytes().replace(b"n1", b"n9"), b"\xff" * 10):
        cache(vault).write_bytes(broken)
        assert vault.rows() == expected
    cache(vault).unlink()
    assert vault.rows() == expected


def test_a_row_is_read_again_when_its_manifest_changed(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    one, two = make_checkpoint(vault), make_checkpoint(vault)
    assert list(vault.rows()) == [one, two]
    path = vault.path(one) / "manifest.json"
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"Mina", b"Mima"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert vault.rows()[one]["tags"] == {"who": "Mima"}
    path.write_bytes(b"not a manifest")
    assert list(vault.rows()) == [two]
    assert one in caplog.text


def test_a_list_that_cannot_be_kept_is_still_given(vault: Vault) -> None:
    one = make_checkpoint(vault)
    cache(vault).mkdir()
    assert list(vault.rows()) == [one]
