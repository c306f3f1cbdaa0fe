"""A vault without room for what a restore displaces: refused before the first change, done with --no-safety."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import coordinator, gate, restore
from lych_checkpoint.errors import UnknownName
from lych_checkpoint.federation import Federation
from tests.fixtures.federation import git
from tests.fixtures.workers import Lych
from tests.integration.test_create_and_restore import body_digest, change_everything, fill, soul_digest

pytestmark = pytest.mark.root


def databases(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("SELECT datname FROM pg_database ORDER BY 1")]


def test_undo_never_means_an_older_restore(
    opened: Callable[..., Federation], federation_root: Path, database: str,
) -> None:
    fill(database)
    federation = opened()
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    change_everything(federation_root, database)
    gate.check(federation)
    kept = restore.restore(federation, sealed)["safety"]
    assert restore.newest_safety(federation) == kept
    restore.restore(federation, sealed, safety=False)
    with pytest.raises(UnknownName, match="kept nothing"):
        restore.newest_safety(federation)


def test_no_room_for_the_displaced(
    lych_environment: dict[str, str], lych: Lych, federation_root: Path, database: str, small_disk: Path
) -> None:
    lych_environment["LYCH_VAULT"] = str(small_disk / "vault")
    fill(database)
    assert lych("init").code == 0
    sealed = lych("create", "--here", "--json")
    assert sealed.code == 0, sealed.out
    before = (body_digest(federation_root), soul_digest(database))
    change_everything(federation_root, database)
    (federation_root / "core/great").write_bytes(os.urandom(4 << 20))
    git(federation_root / "core", "add", "-A")
    git(federation_root / "core", "commit", "-q", "-m", "More than the vault can take")
    changed = (body_digest(federation_root), soul_digest(database))
    plan = lych("restore", "latest", "--dry-run")
    assert "needs --no-safety" in plan.out
    refused = lych("restore", "latest", "--yes", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "no-room"), refused.out
    assert (body_digest(federation_root), soul_digest(database)) == changed
    there = databases(database)
    done = lych("restore", "latest", "--yes", "--no-safety", "--json")
    assert done.code == 0, done.out
    assert done.json["safety"] is None
    assert (body_digest(federation_root), soul_digest(database)) == before
    assert databases(database) == there
    assert "refs/lych/safety" not in git(federation_root / "core", "for-each-ref")
    assert lych("restore", "--undo", "--yes").code == 2
    assert lych("gate").code == 0
