"""Root captures and restores an ordinary user's repositories: every file stays that user's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import body
from tests.fixtures.federation import commit, git
from tests.fixtures.lacking import need_root
from tests.fixtures.workers import Lych
from tests.integration.test_body_restore import Story, evolve, make_odd, soil

pytestmark = pytest.mark.root
USER = 4242


def give(directory: Path) -> None:
    subprocess.run(["chown", "-hR", f"{USER}:{USER}", directory], check=True)


def not_theirs(root: Path) -> list[str]:
    """What below the root is another's; a restore's own place apart."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name != ".lych-stage"]
        paths = [os.path.join(folder, name) for name in (*names, *files)]
        found += [path for path in paths if (os.lstat(path).st_uid, os.lstat(path).st_gid) != (USER, USER)]
    return found


@pytest.fixture
def theirs(federation_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    need_root()
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # for the test's own git, which is root's
    make_odd(federation_root / "core")
    commit(federation_root / "core", {".gitignore": "*.log\ncache/\n__pycache__/\n"}, "Odd names")
    give(federation_root)
    return Story(federation_root, tmp_path / "vault")


def test_capture_stage_and_switch_leave_every_file_to_its_owner(theirs: Story) -> None:
    lock = theirs.checkpoint()
    assert not_theirs(theirs.root) == []
    evolve(theirs.core)
    soil(theirs.core)
    (theirs.core / "deep-cache/__pycache__").mkdir(parents=True)
    (theirs.core / "deep-cache/kept.log").write_text("ignored")
    git(theirs.core, "gc", "-q")
    shutil.rmtree(theirs.root / "extensions/beta")
    give(theirs.root)
    # A tool that root itself once left there, and that git does not know, is nobody else's business.
    (theirs.core / "root.log").write_text("root's own")
    displaced = theirs.restore(lock)
    left = [theirs.core / "root.log"]
    assert not_theirs(theirs.root) == [str(path) for path in left if path.exists()]
    assert body.verify(lock, theirs.root) == []
    body.switch_back(displaced, theirs.root, "t1")
    assert not_theirs(theirs.root) == [str(path) for path in left if path.exists()]
    body.switch(lock, theirs.root, "t1")
    assert not_theirs(theirs.root) == [str(path) for path in left if path.exists()]


def test_no_link_leads_root_to_another_file(theirs: Story, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    (theirs.core / ".git/objects/link").symlink_to(secret)
    os.link(secret, theirs.core / ".git/objects/second-name")
    (theirs.core / ".git/objects/folder").symlink_to(tmp_path, target_is_directory=True)
    theirs.restore(theirs.checkpoint())
    assert (secret.stat().st_uid, tmp_path.stat().st_uid) == (0, 0)


def test_create_and_restore_as_root(theirs: Story, lych: Lych, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE t (n int)")
    assert lych("init").code == 0
    sealed = lych("create", "--here", "--json")
    assert sealed.code == 0, sealed.out
    assert not_theirs(theirs.root) == []
    evolve(theirs.core)
    soil(theirs.core)
    give(theirs.root)
    restored = lych("restore", sealed.json["id"], "--yes", "--json")
    assert restored.code == 0, restored.out
    assert not_theirs(theirs.root) == []
