"""The lineage only grows, and a crash costs at most the line that was being written."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lych_checkpoint.errors import Damage, Refused
from lych_checkpoint.vault import Vault
from tests.fixtures.children import in_child


def generations(vault: Vault) -> list[int]:
    return [record["generation"] for record in vault.lineage()]


def path_of(vault: Vault) -> Path:
    return vault.root / "lineage"


def test_records_come_back_in_order_with_their_facts(vault: Vault) -> None:
    assert vault.last_lineage() is None
    vault.append_lineage("init", 1, "sha256:a")
    vault.append_lineage("restore", 2, "sha256:b", checkpoint="c-1", journal="t-1")
    first, second = vault.lineage()
    assert (first["kind"], first["version"], first["signature"]) == ("init", 1, "sha256:a")
    assert (second["checkpoint"], second["journal"]) == ("c-1", "t-1")
    assert second["at"].endswith("Z")
    assert vault.last_lineage() == second
    assert path_of(vault).stat().st_mode & 0o777 == 0o600


def test_last_is_the_highest_generation_and_the_newest_of_those(vault: Vault) -> None:
    for generation, signature in ((1, "a"), (3, "b"), (2, "c"), (3, "d"), (2, "e")):
        vault.append_lineage("imprint", generation, signature)
    last = vault.last_lineage()
    assert last is not None
    assert (last["generation"], last["signature"]) == (3, "d")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_line_torn_anywhere_is_passed_over_and_then_replaced(vault: Vault, data: st.DataObject) -> None:
    path = path_of(vault)
    path.unlink(missing_ok=True)
    for generation in (1, 2, 3):
        vault.append_lineage("imprint", generation, "}")
    whole = path.read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    cut = data.draw(st.integers(begin, len(whole) - 1))
    rest = whole[begin:cut] if data.draw(st.booleans()) else bytes(cut - begin)  # some file systems leave zeros
    path.write_bytes(whole[:begin] + rest)
    assert generations(vault) == [1, 2]
    vault.append_lineage("imprint", 4, "x")
    assert generations(vault) == [1, 2, 4]


def test_a_torn_line_is_named(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    vault.append_lineage("init", 1, "a")
    with path_of(vault).open("ab") as file:
        file.write(b'{"gener')
    assert generations(vault) == [1]
    assert "7 bytes" in caplog.text
    assert str(path_of(vault)) in caplog.text


@pytest.mark.parametrize("line", [
    b"junk", b"{", b"7", b"[]", b"{}", b"null", b"\xff", b'{"version":1,"generation":1,"kind":"init"}',
    b'{"version":1,"generation":"1","kind":"init","signature":"a"}',
    b'{"version":1,"generation":true,"kind":"init","signature":"a"}',
])
def test_a_whole_line_that_is_no_record_is_damage(vault: Vault, line: bytes) -> None:
    vault.append_lineage("init", 1, "a")
    with path_of(vault).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(Damage, match="lineage:2"):
        vault.last_lineage()


def test_a_newer_lines_release_is_named(vault: Vault) -> None:
    path_of(vault).write_text('{"version":2,"release":"9.9","generation":1,"kind":"init","signature":"a"}\n')
    with pytest.raises(Damage, match=r"9\.9") as caught:
        vault.last_lineage()
    assert caught.value.code == "unknown-version"


def test_a_full_disk_appends_nothing(vault: Vault) -> None:
    vault.append_lineage("init", 1, "a")
    whole = path_of(vault).read_bytes()
    for room in (0, 1, 40):
        error = in_child(lambda: vault.append_lineage("imprint", 2, "b"), largest_file_bytes=len(whole) + room)
        assert isinstance(error, Refused)
        assert error.code == "vault-full"
        assert path_of(vault).read_bytes() == whole


def _append(root: Path, first: int) -> None:
    for generation in range(first, first + 50):
        Vault(root).append_lineage("imprint", generation, "s" * 3000)


def test_many_writers_lose_no_line(vault: Vault) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(vault.root, first)) for first in (0, 50, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(generations(vault)) == list(range(150))
