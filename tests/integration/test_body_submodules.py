"""A submodule that is listed is a repository like any other: its own lock entry, bundle and checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock
from tests.fixtures.federation import commit, git
from tests.fixtures.trees import contents

EXTENSIONS = ("extensions/*", "core/sub")


@pytest.fixture
def root(federation_root: Path) -> Path:
    """A federation whose core has a submodule."""
    git(federation_root / "core", "-c", "protocol.file.allow=always", "submodule", "add", "-q",
        str(federation_root / "extensions/beta"), "sub")
    git(federation_root / "core", "commit", "-q", "-m", "Add it")
    return federation_root


def checkpoint(root: Path, into: Path, dirty: str = "refuse") -> BodyLock:
    policy = body.Policy(dirty=dirty, shadow=into / "shadow")
    with body.scanning(body.discover(root, "core", EXTENSIONS), policy) as scan, body.pinned(scan, "c1"):
        assert body.bundle(scan, "c1", into / "bundles") == []
        return body.lock_of(scan, "c1", "now")


def restore(lock: BodyLock, root: Path, vault: Path) -> BodyLock:
    body.stage(lock, root, vault / "bundles", "t1")
    displaced = body.displace(body.find(root, "core", EXTENSIONS), root, "t1", vault / "shadow")
    body.switch(lock, root, "t1")
    assert body.verify(lock, root, shadow=vault / "shadow") == []
    return displaced


@pytest.mark.parametrize("dirty", ["refuse", "capture"])
def test_it_moves_with_its_parent_there_and_back(root: Path, tmp_path: Path, dirty: str) -> None:
    core, vault = root / "core", tmp_path / "vault"
    if dirty == "capture":
        (core / "sub/new").write_text("not committed\n")
        (core / "top").write_text("not committed\n")
    lock = checkpoint(root, vault, dirty)
    sealed = contents(core)
    commit(core / "sub", {"beta/__init__.py": "VERSION = 2\n", "more": "1\n"})
    commit(core, {"top": "2\n"}, "Take the submodule along")
    evolved = contents(core)
    displaced = restore(lock, root, vault)
    assert contents(core) == sealed
    assert git(core, "submodule", "status")[0] not in "+-U"
    body.switch_back(displaced, root, "t1")
    assert contents(core) == evolved


def test_its_lost_git_directory_comes_back_from_its_bundle(root: Path, tmp_path: Path) -> None:
    core, vault = root / "core", tmp_path / "vault"
    lock = checkpoint(root, vault)
    sealed = contents(core / "sub", lambda path: path != b".git")
    shutil.rmtree(core / "sub")
    shutil.rmtree(core / ".git/modules")
    restore(lock, root, vault)
    assert contents(core / "sub", lambda path: path != b".git") == sealed


def test_both_lost_come_back_and_an_undo_leaves_nothing(root: Path, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    lock = checkpoint(root, vault)
    sealed = contents(root / "core", lambda path: path != b"sub/.git")
    shutil.rmtree(root / "core")
    displaced = restore(lock, root, vault)
    for _ in range(2):
        assert contents(root / "core", lambda path: path != b"sub/.git") == sealed
        body.switch_back(displaced, root, "t1")
        assert not (root / "core").exists()
        body.switch(lock, root, "t1")


def test_a_lost_parent_is_refused_while_the_submodule_stands(root: Path, tmp_path: Path) -> None:
    core, vault = root / "core", tmp_path / "vault"
    lock = checkpoint(root, vault)
    shutil.rmtree(core / ".git/refs")
    with pytest.raises(Refused) as caught:
        body.stage(lock, root, vault / "bundles", "t1")
    assert caught.value.code == "not-movable"
    assert (core / "sub/README").exists()
