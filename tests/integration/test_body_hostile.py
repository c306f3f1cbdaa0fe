"""Nothing that a repository's configuration, hooks or attributes name ever runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.records import digest
from lych_checkpoint.repository import objects
from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.lacking import need_root
from tests.fixtures.trees import contents

EXTENSIONS = ("extensions/*",)
PATHS = ("core", "extensions/alpha")
HOOKS = ("reference-transaction", "post-checkout", "pre-commit", "post-commit", "post-index-change", "post-merge",
         "fsmonitor-watchman", "pre-auto-gc", "post-rewrite", "update", "pre-receive", "post-receive", "post-update",
         "proc-receive", "push-to-checkout", "applypatch-msg", "commit-msg", "prepare-commit-msg")


class Trap:
    """A program that leaves a mark, and all the places where git could be told to run it."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.mark, self.program = place / "mark", place / "program"
        self.program.write_text(f'#!/bin/sh\necho "$0 $*" >> "{self.mark}"\ncat\n')
        self.program.chmod(0o755)

    def sprung(self) -> str:
        """What ran since the last question."""
        found = self.mark.read_text() if self.mark.exists() else ""
        self.mark.unlink(missing_ok=True)
        return found

    def set_in(self, directory: Path) -> None:
        program, hooks = self.program, directory / ".git" / "evil-hooks"
        hooks.mkdir()
        for folder in (hooks, directory / ".git" / "hooks"):
            folder.mkdir(exist_ok=True)
            for hook in HOOKS:
                shutil.copy2(program, folder / hook)
        included = directory / ".git" / "included"
        included.write_text(f'[filter "evil"]\n\tclean = {program}\n\tsmudge = {program}\n\tprocess = {program}\n'
                            f'\trequired = true\n[diff "evil"]\n\ttextconv = {program}\n\tcommand = {program}\n'
                            f'[merge "evil"]\n\tdriver = {program}\n')
        for key, value in {
            "core.fsmonitor": program, "core.hooksPath": hooks, "core.sshCommand": program, "core.pager": program,
            "core.editor": program, "core.askPass": program, "core.gitProxy": program, "diff.external": program,
            "core.alternateRefsCommand": program, "gpg.program": program, "credential.helper": program,
            "sequence.editor": program, "uploadpack.packObjectsHook": program, "pager.status": program,
            "pager.bundle": program, "alias.status": f"!{program}", "alias.update-ref": f"!{program}",
            "protocol.allow": "always", "protocol.ext.allow": "always", "remote.origin.url": f"ext::{program}",
            "remote.origin.uploadpack": program, "remote.origin.promisor": "true", "include.path": included,
            "transfer.bundleURI": "true", "fetch.recurseSubmodules": "true", "submodule.recurse": "true",
            "core.untrackedCache": "true", "core.splitIndex": "true", "gc.auto": "1", "gc.recentObjectsHook": program,
        }.items():
            git(directory, "-c", f"core.hooksPath={os.devnull}", "config", key, str(value))
        info = directory / ".git" / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text("*.evil filter=evil diff=evil merge=evil\n")


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "trap")


@pytest.fixture
def root(tmp_path: Path, trap: Trap) -> Path:
    root = tmp_path / "root"
    for path in PATHS:
        attributes = "*.evil filter=evil diff=evil\n"
        make_repository(root / path, {"a.evil": "a\n", "b": "1\n", ".gitattributes": attributes})
        trap.set_in(root / path)
    trap.sprung()
    return root


def make_racy(root: Path) -> None:
    """Make git compare every file's content, which is when a filter runs."""
    for path in PATHS:
        for file in (root / path).iterdir():
            if file.is_file():
                os.utime(file)


def test_the_trap_works(root: Path, trap: Trap) -> None:
    make_racy(root)
    subprocess.run(["git", "-C", root / "core", "diff-files", "--name-only"], check=False, capture_output=True)
    assert trap.sprung()
    subprocess.run(["git", "-C", root / "core", "update-ref", "refs/x", "HEAD"], check=False, capture_output=True)
    assert "reference-transaction" in trap.sprung()


def test_nothing_runs(root: Path, trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_COMMAND", "EXTERNAL_DIFF", "PROXY_COMMAND", "ASKPASS", "PAGER", "EDITOR"):
        monkeypatch.setenv(f"GIT_{name}", str(trap.program))
    bundles, shadow = tmp_path / "bundles", tmp_path / "shadow"
    members = body.discover(root, "core", EXTENSIONS)
    make_racy(root)
    with body.scanning(members, body.Policy(dirty="capture", shadow=shadow)) as scan, body.pinned(scan, "c1"):
        assert trap.sprung() == ""
        make_racy(root)
        body.recheck(scan)
        body.bundle(scan, "c1", bundles)
        lock = body.lock_of(scan, "c1", "now")
    assert trap.sprung() == ""
    sealed = {path: contents(root / path) for path in PATHS}
    disk = git(root / "core", "rev-parse", "HEAD")
    for path in PATHS:
        (root / path / "a.evil").write_text("other\n")
        (root / path / "new.evil").write_text("new\n")
        make_racy(root)
    body.verify(lock, root)
    body.survey(root, "core", EXTENSIONS)
    body.fingerprint(root, "core", EXTENSIONS)
    body.pins(members)
    body.relation(root / "core", disk, "1" * 40, "")
    assert trap.sprung() == ""
    shutil.rmtree(root / "extensions/alpha/.git/objects")
    body.stage(lock, root, bundles, "t1")
    assert trap.sprung() == ""
    displaced = body.displace(body.find(root, "core", EXTENSIONS), root, "t1", shadow)
    body.bundle_lock(displaced, root, "t1", tmp_path / "safety")
    assert trap.sprung() == ""
    body.switch(lock, root, "t1")
    assert trap.sprung() == ""
    assert body.verify(lock, root) == []
    assert {path: contents(root / path) for path in PATHS} == sealed
    body.switch_back(displaced, root, "t1")
    body.unstage(lock, root, "t1")
    body.unpin([members[0]], "c1")
    assert trap.sprung() == ""


def test_nothing_runs_while_two_bodies_are_compared(root: Path, trap: Trap) -> None:
    old = body.present(root, "core", EXTENSIONS)
    for path in PATHS:
        git(root / path, "config", "log.showSignature", "true")
        later = git(root / path, "commit-tree", "-p", "HEAD", "-m", "Later", "HEAD^{tree}")
        (root / path / ".git/refs/heads/main").write_text(later + "\n")
    trap.sprung()
    compared = body.compare(old, body.present(root, "core", EXTENSIONS), root)
    assert [(one.relation, one.comes.count, one.comes.named[0][1]) for one in compared.values() if one.comes] == [
        ("aligned", 1, "Later")] * 2
    assert trap.sprung() == ""


def test_another_owners_repository_is_read(root: Path, trap: Trap) -> None:
    need_root()
    for folder, names, files in os.walk(root / "core"):
        for name in [*names, *files, "."]:
            os.chown(Path(folder) / name, 65534, 65534, follow_symlinks=False)
    plain = subprocess.run(["git", "-C", root / "core", "rev-parse", "HEAD"], check=False, capture_output=True)
    assert plain.returncode == 128
    assert len(body.survey(root, "core", EXTENSIONS)) == 2
    assert trap.sprung() == ""


def test_a_remote_that_runs_a_program_is_not_recorded(root: Path, tmp_path: Path) -> None:
    scan = body.scan(body.discover(root, "core", EXTENSIONS),
                     body.Policy(dirty="capture", shadow=tmp_path / "shadow"))
    assert scan.pins[0].remote == ""


def test_an_index_that_names_paths_outside_removes_nothing_there(federation_root: Path, tmp_path: Path) -> None:
    core, index = federation_root / "core", federation_root / "core/.git/index"
    (federation_root / "victim").write_text("outside")
    lock, shadow = checkpoint(federation_root, tmp_path), tmp_path / "shadow"
    git(core, "update-index", "--add", "--cacheinfo", f"100644,{git(core, 'rev-parse', 'HEAD:README')},xx/victim")
    data = index.read_bytes()[:-20].replace(b"xx/victim", b"../victim")
    index.write_bytes(data + hashlib.sha1(data).digest())
    assert "../victim" in git(core, "ls-files", "--full-name")
    body.stage(lock, federation_root, tmp_path / "bundles", "t1")
    body.displace(body.find(federation_root, "core", EXTENSIONS), federation_root, "t1", shadow)
    body.switch(lock, federation_root, "t1")
    assert (federation_root / "victim").read_text() == "outside"
    assert body.verify(lock, federation_root) == []


def test_a_symlink_for_a_directory_is_not_followed(federation_root: Path, tmp_path: Path) -> None:
    core, outside = federation_root / "core", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    commit(core, {"folder/file": "ours"})
    lock, shadow = checkpoint(federation_root, tmp_path), tmp_path / "shadow"
    shutil.rmtree(core / "folder")
    (core / "folder").symlink_to(outside)
    body.stage(lock, federation_root, tmp_path / "bundles", "t1")
    displaced = body.displace(body.find(federation_root, "core", EXTENSIONS), federation_root, "t1", shadow)
    body.switch(lock, federation_root, "t1")
    assert (core / "folder/file").read_text() == "ours"
    assert not (core / "folder").is_symlink()
    body.switch_back(displaced, federation_root, "t1")
    assert (core / "folder").is_symlink()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "not ours"}


def test_nothing_is_left_open(federation_root: Path) -> None:
    members = body.discover(federation_root, "core", EXTENSIONS)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with body.scanning(members) as scan:
        body.recheck(scan)
    def children() -> str:  # the session's database server is one of them
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    before, born = open_files(), children()
    for number in range(30):
        with body.scanning(members) as scan, body.pinned(scan, f"c{number}"):
            body.recheck(scan)
    assert open_files() == before
    assert children() == born


def checkpoint(root: Path, vault: Path) -> BodyLock:
    with body.scanning(body.discover(root, "core", EXTENSIONS)) as scan:
        body.bundle(scan, "c1", vault / "bundles")
        return body.lock_of(scan, "c1", "now")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_lockfiles_are_digested_as_committed_and_only_plain_ones(
    tmp_path: Path, object_format: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = tmp_path / "core"
    core.mkdir()
    git(core, "init", "-q", "-b", "main", f"--object-format={object_format}")
    (core / "poetry.lock").symlink_to("/etc/passwd")
    (core / "pdm.lock").mkdir()
    (core / "requirements").mkdir()
    for name in ("notes.md", "tests.txt"):
        (core / "requirements" / name).write_text(name)
    (core / "Pipfile.lock").write_text("x" * 1001)
    (core / os.fsdecode(b"requirements-\xff\n.txt")).write_text("strange")
    commit(core, {"uv.lock": "one\n", "pdm.lock/inner": "", "requirements/deep/a.txt": ""})
    (core / "uv.lock").write_text("not committed")
    monkeypatch.setattr(objects, "_MOST_BYTES", 1000)
    [pin] = body.present(tmp_path, "core", ())
    assert pin.lockfiles == {
        "uv.lock": digest(b"one\n"), "requirements/tests.txt": digest(b"tests.txt"),
        "requirements-\\xff\n.txt": digest(b"strange"),
    }
    blob = git(core, "rev-parse", "HEAD:uv.lock")
    (core / ".git/objects" / blob[:2] / blob[2:]).unlink()  # must not stop a restore
    [pin] = body.present(tmp_path, "core", ())
    assert set(pin.lockfiles) <= {"requirements/tests.txt", "requirements-\\xff\n.txt"}
