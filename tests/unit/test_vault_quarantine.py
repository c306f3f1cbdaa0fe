"""What is put aside comes back byte for byte, once, however often it was put there."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lych_checkpoint.errors import Damage, LockHeld, Refused
from lych_checkpoint.vault import Vault
from lych_checkpoint.vault.quarantine import Message
from tests.fixtures.children import in_child

MESSAGE = Message(
    id="4711", task="record", queue="celery", exchange="", routing_key="celery", content_type="application/x-python",
    content_encoding="binary", headers={"id": "4711", "half": "\ud83d"}, properties={"priority": 3},
    body=bytes(range(256)), retries=0, why="it was published too late", at="2026-01-01T00:00:00.000001Z",
)


def test_a_message_comes_back_once_and_each_try_of_its_task_too(vault: Vault) -> None:
    aside = vault.quarantine
    assert (aside.messages(), aside.count()) == ([], 0)
    again = replace(MESSAGE, at="2026-01-01T00:00:00.000002Z", retries=1)
    other = replace(MESSAGE, at="2026-01-01T00:00:00.000003Z", body=b"")
    for one in (other, MESSAGE, again, MESSAGE):  # delivered a second time: not acknowledged before a kill
        aside.put(one)
    assert aside.messages() == [MESSAGE, again, other]
    assert aside.count() == 3
    folder = vault.root / "quarantine"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    for _ in range(2):
        aside.remove(again)
        assert aside.messages() == [MESSAGE, other]


def test_what_json_has_not_is_kept_as_text(vault: Vault) -> None:
    vault.quarantine.put(replace(MESSAGE, headers={"since": datetime(2026, 1, 1, tzinfo=UTC)}))
    assert vault.quarantine.messages()[0].headers == {"since": "2026-01-01 00:00:00+00:00"}


@pytest.mark.parametrize("text", [b"", b"{}", b'{"version": 1}', b"[]"])
def test_a_file_that_is_no_message_is_named(vault: Vault, text: bytes) -> None:
    vault.quarantine.put(MESSAGE)
    path = vault.root / "quarantine" / "odd.json"
    path.write_bytes(text)
    with pytest.raises(Damage) as caught:
        vault.quarantine.messages()
    assert caught.value.where == str(path)


def test_without_room_nothing_is_left(vault: Vault) -> None:
    error = in_child(lambda: vault.quarantine.put(replace(MESSAGE, body=bytes(8192))), largest_file_bytes=4096)
    assert isinstance(error, Refused)
    assert list((vault.root / "quarantine").iterdir()) == []


def test_one_holds_it_at_a_time(vault: Vault) -> None:
    vault.quarantine.put(MESSAGE)
    with vault.quarantine.held(), pytest.raises(LockHeld), vault.quarantine.held():
        pass
    with vault.quarantine.held():
        assert vault.quarantine.count() == 1
