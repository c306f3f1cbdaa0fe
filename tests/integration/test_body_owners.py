"""Root captures and restores an ordinary user's repositories: every file stays that user's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import capture
from tests.fixtures.federation import commit, git, make_repository
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


def their_extension(root: Path) -> Path:
    """The extension beta, whose working tree is another's while all else is root's."""
    directory = root / "extensions/beta"
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "file").write_text("theirs")
    return directory


def by_a_file(directory: Path, target: Path) -> None:
    (directory / ".git").write_text(f"gitdir: {target}\n")


def by_a_link(directory: Path, target: Path) -> None:
    (directory / ".git").symlink_to(target)


def by_a_common_directory(directory: Path, target: Path) -> None:
    (directory / ".git").mkdir()
    (directory / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (directory / ".git/commondir").write_text(f"{target}\n")


def by_its_objects(directory: Path, target: Path) -> None:
    by_a_common_directory(directory, target)
    (directory / ".git/commondir").unlink()
    shutil.copytree(target / "refs", directory / ".git/refs")
    (directory / ".git/objects").symlink_to(target / "objects")


@pytest.mark.parametrize("lead", [by_a_file, by_a_link, by_a_common_directory, by_its_objects])
def test_root_gives_away_no_git_directory_that_a_tree_only_names(
    federation_root: Path, tmp_path: Path, lead: Callable[[Path, Path], None],
) -> None:
    need_root()
    make_repository(tmp_path / "roots", {"secret": "root's\n"})
    directory = their_extension(federation_root)
    lead(directory, tmp_path / "roots/.git")
    give(directory)
    story = Story(federation_root, tmp_path / "vault")
    with pytest.raises(Refused) as caught:
        story.checkpoint()
    assert caught.value.code == "foreign-git-dir"
    body.unpin(body.find(federation_root, "core", ("extensions/*",)), "c1")
    owners = {os.lstat(os.path.join(folder, name)).st_uid
              for folder, names, files in os.walk(tmp_path / "roots") for name in (*names, *files)}
    assert owners == {0}
    assert not (tmp_path / "roots/.git/refs/lych").exists()


@pytest.mark.parametrize("name", ["refs/lych", "refs/lych/checkpoints", "objects/pack", "logs/HEAD"])
def test_root_writes_through_no_link_in_a_git_directory(theirs: Story, tmp_path: Path, name: str) -> None:
    lock, outside = theirs.checkpoint(), tmp_path / "outside"
    outside.mkdir()
    path = theirs.core / ".git" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if name == "logs/HEAD":
        (outside / "log").touch()
        path.symlink_to(outside / "log")
    else:
        path.symlink_to(outside)
    give(theirs.core)
    with pytest.raises(Refused) as caught:
        theirs.checkpoint() if name != "logs/HEAD" else body.stage(lock, theirs.root, theirs.bundles, "t1")
    assert caught.value.code == "foreign-git-dir"
    assert [file.read_bytes() for file in outside.iterdir()] == ([b""] if name == "logs/HEAD" else [])


def test_roots_capture_leaves_a_store_that_its_owner_can_use(theirs: Story, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    give(vault)
    evolve(theirs.core)
    soil(theirs.core)
    give(theirs.root)
    theirs.checkpoint(dirty="capture")
    body.unpin(body.discover(theirs.root, "core", ("extensions/*",)), "c1", theirs.shadow)
    assert theirs.shadow.is_dir()
    assert [path for path in not_theirs(vault) if "bundles" not in path] == []
    assert not_theirs(theirs.root) == []


def test_no_file_of_roots_ever_has_the_bits_that_another_gave_it(
    theirs: Story, monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, kept = theirs.core / "new-tool", theirs.core / "private"
    tool.write_text("#!/bin/sh\n")
    kept.write_text("kept\n")
    give(theirs.root)
    tool.chmod(0o6755)
    kept.chmod(0o600)
    lock = theirs.checkpoint(dirty="capture")
    commit(theirs.core, {"other": "1\n"})
    tool.unlink()
    kept.unlink()
    give(theirs.root)
    owners = []
    set_mode = capture._set_mode
    monkeypatch.setattr(capture, "_set_mode", lambda directory, name, mode: (
        owners.append((directory / name).stat().st_uid), set_mode(directory, name, mode)))
    theirs.restore(lock)
    assert owners == [USER] * len(owners) != []
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tool, kept)] == [0o755, 0o600]
    assert not_theirs(theirs.root) == []


def test_a_mode_reaches_no_file_outside(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (tree / "real").mkdir(parents=True)
    (outside / "file").touch(mode=0o600)
    (tree / "folder").symlink_to(outside)
    (tree / "real/link").symlink_to(outside / "file")
    os.link(outside / "file", tree / "real/second-name")
    (tree / "real/own").touch(mode=0o644)
    for name in ("folder/file", "folder/", "real/link", "real/second-name", "none", "real/none", "real/own"):
        capture._set_mode(tree, name, 0o666)
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE(outside.stat().st_mode) != 0o666
    assert stat.S_IMODE((tree / "real/own").stat().st_mode) == 0o666
