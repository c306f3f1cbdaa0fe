"""Nothing that a repository's configuration, hooks or attributes name ever runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.records import digest
from lych_checkpoint.repository import objects
from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.lacking import need_root
from tests.fixtures.traps import ATTRIBUTES, SPRINGS, Trap, make_racy, use
from tests.fixtures.trees import contents

EXTENSIONS = ("extensions/*",)
PATHS = ("core", "extensions/alpha")


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "trap")


@pytest.fixture
def root(tmp_path: Path, trap: Trap) -> Path:
    root = tmp_path / "root"
    for path in PATHS:
        make_repository(root / path, {"a.evil": "a\n", "a.command": "a\n", "b": "1\n", ".gitattributes": ATTRIBUTES})
        commit(root / path, {"a.command": "b\n", "a.process": "a\n", "b": "2\n"})
        trap.set_in(root / path)
    trap.sprung()
    return root


def make_all_racy(root: Path) -> None:
    for path in PATHS:
        make_racy(root / path)


def test_every_trap_springs_on_whoever_just_uses_git(root: Path, trap: Trap, tmp_path: Path) -> None:
    """Else a mark that is missing would prove nothing."""
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", root / "extensions/alpha", other)
    (root / "core/.git/objects/info/alternates").write_text(f"{other}/.git/objects\n")
    silent = []
    for name, (arguments, stdin) in SPRINGS.items():
        trap.sprung()
        use(root / "core", arguments, stdin)
        if f"{name} " not in trap.sprung():
            silent.append(name)
    assert silent == []


def test_nothing_runs(root: Path, trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in trap.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    bundles, shadow = tmp_path / "bundles", tmp_path / "shadow"
    members = body.discover(root, "core", EXTENSIONS)
    make_all_racy(root)
    with body.scanning(members, body.Policy(dirty="capture", shadow=shadow)) as scan, body.pinned(scan, "c1"):
        assert trap.sprung() == ""
        make_all_racy(root)
        body.recheck(scan)
        body.bundle(scan, "c1", bundles)
        lock = body.lock_of(scan, "c1", "now")
    assert trap.sprung() == ""
    sealed = {path: contents(root / path) for path in PATHS}
    disk = git(root / "core", "rev-parse", "HEAD")
    for path in PATHS:
        (root / path / "a.evil").write_text("other\n")
        (root / path / "new.evil").write_text("new\n")
        make_racy(root / path)
    body.verify(lock, root)
    body.survey(root, "core", EXTENSIONS)
    body.fingerprint(root, "core", EXTENSIONS)
    body.pins(members)
    body.relation(root / "core", body.Standing(disk, ""), "1" * 40, "1" * 40)
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


def endless_ref(core: Path) -> None:
    (core / ".git/refs/heads/main").unlink()
    os.mkfifo(core / ".git/refs/heads/main")


def device_ref(core: Path) -> None:
    (core / ".git/refs/heads/main").unlink()
    (core / ".git/refs/heads/main").symlink_to("/dev/zero")


def endless_packed_refs(core: Path) -> None:
    (core / ".git/refs/heads/main").unlink()
    os.mkfifo(core / ".git/packed-refs")


def huge_head(core: Path) -> None:
    os.truncate(core / ".git/HEAD", 1 << 40)


def endless_attributes(core: Path) -> None:
    os.mkfifo(core / ".git/info/attributes")


def endless_index(core: Path) -> None:
    (core / ".git/index").unlink()
    os.mkfifo(core / ".git/index")


def endless_configuration(core: Path) -> None:
    (core / ".git/config").unlink()
    os.mkfifo(core / ".git/config")


def endless_excludes(core: Path) -> None:
    (core / ".git/info/exclude").unlink(missing_ok=True)
    os.mkfifo(core / ".git/info/exclude")


def endless_ignores(core: Path) -> None:
    (core / "new").mkdir()
    os.mkfifo(core / "new/.gitignore")


def endless_ignores_below_ignored(core: Path) -> None:
    (core / ".gitignore").write_text("new\n")
    (core / "new/deep").mkdir(parents=True)
    os.mkfifo(core / "new/deep/.gitignore")


def endless_tree_attributes(core: Path) -> None:
    os.mkfifo(core / ".gitattributes")


SPOILS = [endless_ref, device_ref, endless_packed_refs, huge_head, endless_attributes, endless_index,
          endless_configuration, endless_excludes, endless_ignores,
          endless_ignores_below_ignored, endless_tree_attributes]


@pytest.mark.timeout(60)  # far below what git may take
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("watched", [False, True])
def test_what_never_ends_is_refused_at_once(
    federation_root: Path, spoil: Callable[[Path], None], watched: bool,
) -> None:
    spoil(federation_root / "core")
    with pytest.raises(Refused) as refused, ExitStack() as stack:
        members = body.discover(federation_root, "core", EXTENSIONS)
        stack.enter_context(body.scanning(members)) if watched else body.scan(members)
    assert refused.value.code == "broken"
    body.fingerprint(federation_root, "core", EXTENSIONS)


def test_a_terabyte_is_not_captured(federation_root: Path, tmp_path: Path) -> None:
    (federation_root / "core/sparse").touch()
    os.truncate(federation_root / "core/sparse", 1 << 40)
    with pytest.raises(Refused) as refused:
        body.scan(body.discover(federation_root, "core", EXTENSIONS),
                  body.Policy(dirty="capture", shadow=tmp_path / "shadow"))
    assert refused.value.code == "too-large"


def test_names_that_no_lock_can_hold(federation_root: Path) -> None:
    core, odd = federation_root / "core", os.fsdecode(b"caf\xe9")
    (core / ".git/refs/heads" / odd).write_text(git(core, "rev-parse", "HEAD") + "\n")
    (core / ".git/HEAD").write_bytes(b"ref: refs/heads/caf\xe9\n")
    scan = body.scan(body.discover(federation_root, "core", EXTENSIONS))
    assert body.lock_of(scan, "c1", "now").dumps().encode()
    assert [pin.branch for pin in scan.pins] == ["", "main", "main"]
    make_repository(federation_root / "extensions" / odd, {"a": ""})
    with pytest.raises(Refused) as refused:
        body.discover(federation_root, "core", EXTENSIONS)
    assert refused.value.code == "odd-name"


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


def no_tree(core: Path) -> str:
    data = b"100644 uv.lock without an end"
    made = subprocess.run(["git", "-C", core, "hash-object", "-t", "tree", "--literally", "-w", "--stdin"],
                          check=True, input=data, capture_output=True)
    return made.stdout.decode().strip()


def many_lockfiles(core: Path, name: str = "requirements-{}.txt", count: int = 1500) -> str:
    blob = subprocess.run(["git", "-C", core, "hash-object", "-w", "--stdin"], check=True, input=b"x",
                          capture_output=True).stdout.decode().strip()
    listed = "".join(f"100644 blob {blob}\t{name.format(number)}\0" for number in range(count))
    return subprocess.run(["git", "-C", core, "mktree", "-z"], check=True, input=listed.encode(),
                          capture_output=True).stdout.decode().strip()


def a_long_lockfile(core: Path) -> str:
    return many_lockfiles(core, "requirements-" + "x" * 200_000 + "{}.txt", 1)


@pytest.mark.parametrize(("make", "code"), [(no_tree, "broken"), (many_lockfiles, ""), (a_long_lockfile, "")])
def test_a_tree_that_no_git_would_write_crashes_nothing(
    federation_root: Path, make: Callable[[Path], str], code: str,
) -> None:
    core = federation_root / "core"
    later = git(core, "commit-tree", "-m", "Odd", make(core))
    (core / ".git/refs/heads/main").write_text(later + "\n")
    found = ""
    try:
        body.pins(body.discover(federation_root, "core", EXTENSIONS))
    except Refused as error:
        found = error.code
    assert found == code
    assert all(pin.lockfiles == {} for pin in body.present(federation_root, "core", EXTENSIONS))


def test_lockfiles_that_are_too_large_together_are_not_all_digested(
    federation_root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit(federation_root / "core", {"pdm.lock": "x" * 600, "poetry.lock": "x" * 600, "uv.lock": "x" * 300})
    monkeypatch.setattr(objects, "_MOST_BYTES", 1000)
    pin = body.present(federation_root, "core", EXTENSIONS)[0]
    assert set(pin.lockfiles) == {"pdm.lock", "uv.lock"}
