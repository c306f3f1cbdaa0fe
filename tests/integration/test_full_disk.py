"""The vault's disk fills while a create runs, after the thaw: nothing is sealed, and the error says where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lych_checkpoint import body, seal
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.database import portrait
from lych_checkpoint.errors import Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.status import status
from tests.fixtures.workers import Lych

#: What comes next when the disk is full, with what the error calls it.
STEPS: dict[str, tuple[Any, str]] = {
    "settings.json": (portrait, "read"), "lychd.lock": (body, "lock_of"),
    "bundles": (body, "bundle"), "seal": (seal, "seal"),
}


@pytest.fixture
def full(small_disk: Path) -> Iterator[Callable[[], None]]:
    """Fill the small disk to its last byte."""
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                os.fsync(file.fileno())

    yield fill
    filler.unlink(missing_ok=True)


@pytest.mark.parametrize("step", STEPS)
def test_a_vault_that_fills_is_refused_by_name_and_nothing_stays(
    step: str, full: Callable[[], None], small_disk: Path, opened: Callable[..., Federation], lych: Lych,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"LYCH_DRIVER": "dump", "LYCH_VAULT": str(small_disk / "vault")}
    assert lych("init", **settings).code == 0
    federation = opened(**settings)
    owner, name = STEPS[step]
    act = getattr(owner, name)

    def fill_first(*arguments: Any, **named: Any) -> Any:
        full()
        return act(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fill_first)
        _refuse(federation, small_disk)
    (small_disk / "filler").unlink()
    assert create(federation, Request())["state"] == "sealed"


def test_a_dump_that_is_larger_than_the_vault_is_refused_by_name(
    small_disk: Path, opened: Callable[..., Federation], lych: Lych, database: str
) -> None:
    settings = {"LYCH_DRIVER": "dump", "LYCH_VAULT": str(small_disk / "vault")}
    assert lych("init", **settings).code == 0
    with psycopg.connect(database) as connection:
        connection.execute("create table noise as select gen_random_uuid() from generate_series(1, 100000)")
    _refuse(opened(**settings), small_disk)


def _refuse(federation: Federation, disk: Path) -> None:
    with pytest.raises(Refused) as caught:
        create(federation, Request())
    assert caught.value.exit_code == 1
    assert caught.value.code in ("vault-full", "no-room"), caught.value
    assert caught.value.where.startswith(str(disk)), caught.value
    assert "make room" in caught.value.mend
    assert list((disk / "vault" / "checkpoints").iterdir()) == []
    assert status(federation)["state"] == "thawed"
