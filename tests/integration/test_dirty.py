"""A dirty body, captured where the user asks for it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import body, environment
from lych_checkpoint.database import connect
from lych_checkpoint.manifest import BodyLock, Environment
from lych_checkpoint.records import digest
from tests.fixtures.federation import commit, git
from tests.fixtures.workers import Lych
from tests.integration.test_create_and_restore import body_digest, change_everything, fill, soul_digest


def bytes_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file outside the git directories."""
    found = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".lych-stage")]
        for name in names:
            path = Path(parent, name)
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    found.pop("lychd.lock", None)
    return found


@pytest.mark.parametrize("shadow_survives", [True, False])
def test_captured_dirty_tree_comes_back_bit_for_bit(
    shadow_survives: bool, lych: Lych, federation_root: Path, database: str, tmp_path: Path
) -> None:
    fill(database)
    assert lych("init").code == 0
    core = federation_root / "core"
    (core / "README").write_bytes(b"edited\r\n\x00\xff")
    (core / "run.sh").write_text("#!/bin/sh\n")
    (core / "run.sh").chmod(0o755)
    (core / "link").symlink_to("README")
    (core / ".git/info/exclude").write_text("*.log\n")
    (core / "run.log").write_text("ignored")
    (core / "hollow/inner").mkdir(parents=True)
    head, status = git(core, "rev-parse", "HEAD"), git(core, "status", "--porcelain")
    assert lych("create", "--here").code == 1
    sealed = lych("create", "--here", "--json", LYCH_DIRTY="capture")
    assert sealed.code == 0, sealed.out
    assert (git(core, "rev-parse", "HEAD"), git(core, "status", "--porcelain")) == (head, status)
    manifest = json.loads((tmp_path / "vault/checkpoints" / sealed.json["id"] / "manifest.json").read_bytes())
    assert manifest["unheld"] == {"core": ["hollow/inner/", "run.log"]}
    before = (bytes_of(federation_root), soul_digest(database))
    git(core, "add", "-A")
    change_everything(federation_root, database)
    (core / "link").unlink()
    git(core, "commit", "-qam", "gone")
    if not shadow_survives:
        shutil.rmtree(tmp_path / "vault" / "shadow")
    restored = lych("restore", "latest", "--yes", "--json", LYCH_DIRTY="capture")
    assert restored.code == 0, restored.out
    assert (bytes_of(federation_root), soul_digest(database)) == before
    assert lych("gate", "--json").json["verdict"] == "aligned"  # the gate looks at what is checked out
    assert body_digest(federation_root)
    gate = lych("gate", "--json")  # dirty as it is, it is the body that these data were captured with
    assert (gate.code, gate.json["verdict"]) == (0, "aligned"), gate.out


def test_secrets_and_great_trees_are_refused_by_name(lych: Lych, federation_root: Path) -> None:
    assert lych("init").code == 0
    core = federation_root / "core"
    (core / "deploy").mkdir()
    (core / "deploy/.env.production").write_text("PASSWORD=x\n")
    refused = lych("create", "--here", "--json", LYCH_DIRTY="capture")
    assert (refused.code, refused.json["error"]["code"], refused.json["error"]["where"]) == (1, "secret", "core")
    (core / "deploy/.env.production").rename(core / "deploy/.env.example")
    (core / "great").write_bytes(bytes(5000))
    refused = lych("create", "--here", "--json", LYCH_DIRTY="capture", LYCH_DIRTY_LIMIT_BYTES="5000")
    assert (refused.code, refused.json["error"]["code"]) == (1, "too-large")
    assert not [*(core / ".git").glob("refs/lych/**/*")]
    assert lych("create", "--here", LYCH_DIRTY="capture", LYCH_DIRTY_LIMIT_BYTES="6000").code == 0


def test_doctor_captures_nothing(lych: Lych, federation_root: Path, tmp_path: Path) -> None:
    assert lych("init").code == 0
    (federation_root / "core/README").write_text("dirty\n")
    told = lych("doctor", "--json", LYCH_DIRTY="capture")
    assert "dirty, to be captured: core" in " ".join(one["what"] for one in told.json["checks"]), told.out
    assert not (tmp_path / "vault/shadow").exists()


def test_the_lock_names_the_environment(lych: Lych, federation_root: Path, database: str) -> None:
    fill(database)
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('b2'), ('a1')")
        connection.execute("CREATE TABLE django_migrations (id serial, app text, name text)")
        connection.execute("INSERT INTO django_migrations (app, name) VALUES ('shop', '0001'), ('shop', '0002')")
        connection.execute("CREATE SCHEMA odd")
        connection.execute("CREATE TABLE odd.alembic_version (another text)")
        version = connection.info.server_version
        connection.commit()
        with connect(database) as other, connection.transaction():
            connection.execute("LOCK TABLE alembic_version")  # as a migration under way does
            assert environment.read(other) == Environment()
    core = federation_root / "core"
    commit(core, {"uv.lock": "one\n", "requirements/prod.txt": "two\n", "deep/poetry.lock": "not looked at\n"})
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    lock = BodyLock.loads((federation_root / "lychd.lock").read_text())
    pin = next(pin for pin in lock.repos if pin.path == "core")
    assert pin.lockfiles == {name: digest(text) for name, text in
                             (("uv.lock", b"one\n"), ("requirements/prod.txt", b"two\n"))}
    assert lock.environment.python == platform.python_version()
    assert lock.environment.postgresql == str(version // 10_000)
    assert "plpgsql" in lock.environment.extensions
    assert lock.environment.migrations == {"alembic public": ["a1", "b2"], "django public shop": ["0002"]}
    assert body.pins(body.discover(federation_root, "core", ("extensions/*",)))[0] == lock.signature
    (core / "uv.lock").write_text("three\n")
    assert lych("create", "--here", LYCH_DIRTY="capture").code == 0
    dirty = BodyLock.loads((federation_root / "lychd.lock").read_text())
    assert next(pin for pin in dirty.repos if pin.path == "core").lockfiles["uv.lock"] == digest(b"three\n")
