"""Stage, displace, switch, verify, and back: every byte, link and mode."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.repository import bundles
from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.trees import contents

EXTENSIONS = ("extensions/*",)
NAMES = ("core", "extensions/alpha", "extensions/beta")


class Story:
    """One federation, a checkpoint of it, and a restore."""

    def __init__(self, root: Path, vault: Path, core: str = "core", extensions: Sequence[str] = EXTENSIONS) -> None:
        self.root, self.bundles, self.shadow = root, vault / "bundles", vault / "shadow"
        self.core, self._listed = root / core, (core, extensions)

    def checkpoint(self, dirty: str = "refuse") -> BodyLock:
        members = body.discover(self.root, *self._listed)
        with body.scanning(members, body.Policy(dirty=dirty, shadow=self.shadow)) as scan, body.pinned(scan, "c1"):
            body.recheck(scan)
            body.bundle(scan, "c1", self.bundles)
            return body.lock_of(scan, "c1", "2026-01-01T00:00:00Z")

    def stage(self, lock: BodyLock, ticket: str = "t1") -> None:
        body.stage(lock, self.root, self.bundles, ticket)

    def displace(self, ticket: str = "t1") -> BodyLock:
        return body.displace(body.find(self.root, *self._listed), self.root, ticket, self.shadow)

    def restore(self, lock: BodyLock, ticket: str = "t1") -> BodyLock:
        self.stage(lock, ticket)
        displaced = self.displace(ticket)
        body.switch(lock, self.root, ticket)
        return displaced

    def all_contents(self) -> dict[str, object]:
        return {name: contents(self.root / name) for name in NAMES if (self.root / name).exists()}


@pytest.fixture
def story(federation_root: Path, tmp_path: Path) -> Story:
    make_odd(federation_root / "core")
    commit(federation_root / "core", {".gitignore": "*.log\ncache/\n__pycache__/\n"}, "Odd names")
    return Story(federation_root, tmp_path / "vault")


def make_odd(core: Path) -> None:
    root = os.fsencode(core)
    for name in (b"line\nbreak", b"not-utf8-\xff\xfe", b" space ", b"-option", b"quote\"'\\", b"Case", b"case"):
        with open(os.path.join(root, name), "wb") as file:
            file.write(b"content of " + name + b"\r\n\0")
    (core / "empty").write_bytes(b"")
    (core / "tool").write_text("#!/bin/sh\n")
    (core / "tool").chmod(0o755)
    (core / "deep/er").mkdir(parents=True)
    (core / "deep/er/file").write_text("deep\n")
    (core / "link").symlink_to("deep")
    (core / "dangling").symlink_to("../nowhere")
    (core / "swap").write_text("a file now\n")
    (core / "turn").symlink_to("tool")


def evolve(core: Path) -> str:
    """Change kinds of things into other kinds, in a commit."""
    (core / "swap").unlink()
    (core / "swap/inner").mkdir(parents=True)
    (core / "swap/inner/x").write_text("a directory now\n")
    (core / "turn").unlink()
    (core / "turn").mkdir()
    (core / "turn/y").write_text("y\n")
    shutil.rmtree(core / "deep")
    (core / "deep").symlink_to("turn")
    (core / "link").unlink()
    (core / "link").write_text("no link\n")
    (core / "tool").chmod(0o644)
    (core / "line\nbreak").write_text("changed")
    (core / "-option").unlink()
    return commit(core, {"future": "f\n"}, "Evolve")


def soil(core: Path) -> None:
    """Leave every kind of dirt."""
    (core / "README").write_text("dirty\n")
    (core / "tool").chmod(0o755)
    (core / "case").unlink()
    (core / "private").write_text("mode 0600")
    (core / "private").chmod(0o600)
    (core / "staged").write_text("staged")
    git(core, "add", "staged")
    (core / "new/deep").mkdir(parents=True)
    (core / "new/deep" / os.fsdecode(b"\xffx")).write_bytes(b"\0\1\r\n")
    (core / "new/link").symlink_to("nowhere at all")
    (core / "forced.log").write_text("tracked though ignored")
    git(core, "add", "-f", "forced.log")
    git(core, "update-index", "--assume-unchanged", "swap/inner/x")
    (core / "swap/inner/x").write_text("behind git's back")


def not_ours(path: bytes) -> bool:
    return path.split(b"/")[0] not in (b"core", b".lych-stage") and b"/.git/refs/lych" not in path


def test_there_and_back_again(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    future = evolve(story.core)
    commit(story.root / "extensions/alpha", {"more": "m\n"})
    differing = [line.split(":")[0] for line in body.verify(lock, story.root)]
    assert differing == ["core", "core", "extensions/alpha", "extensions/alpha"]
    evolved = story.all_contents()
    places = [(story.root / name).stat().st_ino for name in NAMES]
    displaced = story.restore(lock)
    assert body.verify(lock, story.root) == []
    assert story.all_contents() == sealed
    assert [(story.root / name).stat().st_ino for name in NAMES] == places  # in place, not made anew
    assert git(story.core, "status", "--porcelain") == ""
    # The branch was not forced: its tip is the future still, so HEAD is detached.
    assert git(story.core, "rev-parse", "main") == future
    assert git(story.core, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD"
    assert git(story.root / "extensions/beta", "symbolic-ref", "HEAD") == "refs/heads/main"
    body.switch(lock, story.root, "t1")
    assert story.all_contents() == sealed
    body.switch_back(displaced, story.root, "t1")
    assert body.verify(displaced, story.root) == []
    assert story.all_contents() == evolved
    assert git(story.core, "symbolic-ref", "HEAD") == "refs/heads/main"
    body.unstage(lock, story.root, "t1")
    assert not (story.root / ".lych-stage").exists()
    assert git(story.core, "for-each-ref", "--format=%(refname)", "refs/lych/staged") == ""


def test_a_dirty_body_comes_back_byte_for_byte(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    evolve(story.core)
    soil(story.core)
    dirty = story.all_contents()
    displaced = story.restore(lock)
    pin = displaced.repos[0]
    assert pin.captured
    assert git(story.core, "status", "--porcelain") == ""
    assert story.all_contents() == sealed
    body.switch_back(displaced, story.root, "t1")
    assert story.all_contents() == dirty
    assert body.verify(displaced, story.root, shadow=story.shadow) == []
    (story.core / "new/link").unlink()
    assert body.verify(displaced, story.root, shadow=story.shadow) != []


def test_a_captured_checkpoint_needs_only_its_bundle(story: Story) -> None:
    evolve(story.core)
    soil(story.core)
    before = (story.core / ".git/index").read_bytes()
    dirty = story.all_contents()
    lock = story.checkpoint(dirty="capture")
    assert (story.core / ".git/index").read_bytes() == before
    assert story.checkpoint(dirty="capture").signature == lock.signature
    shutil.rmtree(story.core)
    shutil.rmtree(story.shadow)
    story.restore(lock)
    assert story.all_contents() == dirty
    assert body.verify(lock, story.root) == []


def test_a_captured_tree_keeps_the_modes_of_its_directories(story: Story) -> None:
    for name, mode in (("closed", 0o700), ("closed/inner", 0o1770), ("plain", 0o755)):
        (story.core / name).mkdir()
        (story.core / name / "file").write_text("x\n")
        (story.core / name).chmod(mode)
    os.mkfifo(story.core / "closed/pipe")
    members = body.discover(story.root, "core", EXTENSIONS)
    scan = body.scan(members, body.Policy(dirty="capture", shadow=story.shadow))
    assert scan.unheld == {"core": ("closed/pipe",)}
    lock = story.checkpoint(dirty="capture")
    shutil.rmtree(story.core)
    story.restore(lock)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in story.core.rglob("*") if path.is_dir()}
    assert {name: modes[name] for name in ("closed", "inner", "plain")} == {
        "closed": 0o700, "inner": 0o1770, "plain": 0o755}


def test_what_a_cut_off_undo_had_brought_is_not_kept_beside_the_commit_that_holds_it(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    commit(story.core, {"only": "whole\n"})
    displaced = story.restore(lock)
    (story.core / "only").write_text("wh")  # as a git that was killed leaves it
    body.switch(lock, story.root, "t1")
    assert story.all_contents() == sealed
    assert [*(story.root / ".lych-stage/t1").glob("*-files*/**/only")] == []
    body.switch_back(displaced, story.root, "t1")
    assert (story.core / "only").read_text() == "whole\n"


def test_a_captured_tree_has_its_modes_back_where_git_sees_no_change(story: Story) -> None:
    file, folder = story.core / "deep/er/file", story.core / "deep/er"
    (story.core / "untracked").write_text("u\n")
    lock = story.checkpoint(dirty="capture")
    file.chmod(0o400)
    folder.chmod(0o700)
    mask = os.umask(0o077)
    try:
        story.restore(lock)
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, folder, story.core / "untracked")]
    assert modes == [0o644, 0o755, 0o644]


def test_a_filter_makes_a_repository_dirty_and_is_captured_raw(story: Story) -> None:
    attributes = "*.big filter=store\n*.txt text eol=crlf\n"
    commit(story.core, {".gitattributes": attributes, "x.big": "raw", "x.txt": "a\n"})
    with pytest.raises(Refused) as caught:
        story.checkpoint()
    assert caught.value.code == "dirty"
    assert "filter" in caught.value.what
    sealed = story.all_contents()
    lock = story.checkpoint(dirty="capture")
    (story.core / "x.txt").write_bytes(b"a\r\nb\r\n")
    story.restore(lock)
    assert story.all_contents() == sealed


def test_line_ends_are_converted_as_git_does(story: Story) -> None:
    commit(story.core, {".gitattributes": "*.txt text eol=crlf\n"})
    (story.core / "x.txt").write_bytes(b"one\r\ntwo\r\n")
    git(story.core, "add", "-A")
    git(story.core, "commit", "-q", "-m", "CRLF outside, LF inside")
    lock = story.checkpoint()
    sealed = story.all_contents()
    git(story.core, "rm", "-q", "x.txt")
    git(story.core, "commit", "-q", "-m", "Remove")
    story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []


def test_a_lost_repository_comes_back_from_its_bundle(story: Story) -> None:
    git(story.root / "extensions/beta", "remote", "add", "origin", "https://git.example.org/beta.git")
    lock = story.checkpoint()
    sealed = story.all_contents()
    shutil.rmtree(story.root / "extensions/beta")
    shutil.rmtree(story.core)
    story.stage(lock)
    assert not story.core.exists()
    displaced = story.displace()
    body.switch(lock, story.root, "t1")
    assert body.verify(lock, story.root) == []
    assert story.all_contents() == sealed
    assert git(story.core, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(story.core, "status", "--porcelain") == ""
    assert git(story.core, "fsck", "--full") == ""
    assert git(story.root / "extensions/beta", "remote", "get-url", "origin") == "https://git.example.org/beta.git"
    body.switch_back(displaced, story.root, "t1")
    assert not story.core.exists()
    body.switch(lock, story.root, "t1")
    assert story.all_contents() == sealed


def test_a_force_pushed_and_collected_commit_comes_back(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    git(story.core, "update-ref", "-d", "refs/lych/checkpoints/c1")
    git(story.core, "checkout", "-q", "--orphan", "fresh")
    commit(story.core, {"fresh": "f\n"})
    git(story.core, "branch", "-q", "-D", "main")
    git(story.core, "reflog", "expire", "--expire=now", "--all")
    git(story.core, "gc", "-q", "--prune=now")
    story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-60] + bytes([data[-60] ^ 1]) + data[-59:],
                                    lambda data: data[:-30], lambda _: b""])
def test_a_bundle_that_brings_nothing_back_is_told(story: Story, damage: Callable[[bytes], bytes]) -> None:
    story.checkpoint()
    [file] = story.bundles.glob("core-*.bundle")
    assert bundles.doubt("sha1", [file]) == ""
    file.write_bytes(damage(file.read_bytes()))
    assert file.name in bundles.doubt("sha1", [file])
    assert {path.suffix for path in story.bundles.iterdir()} == {".bundle"}


@pytest.mark.parametrize("wreck", ["HEAD", "objects", ".git", "config"])
def test_a_broken_repository_is_kept_whole_and_replaced(story: Story, wreck: str) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    if wreck == ".git":
        shutil.rmtree(story.core / ".git")
    elif wreck == "objects":
        shutil.rmtree(story.core / ".git/objects")
    else:
        (story.core / ".git" / wreck).write_text("[nonsense")
    (story.core / "precious.log").write_text("not in git")
    displaced = story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []
    kept = list((story.root / ".lych-stage/t1/old").iterdir())
    assert [(path / "precious.log").read_text() for path in kept] == ["not in git"]
    if wreck != ".git":
        body.switch_back(displaced, story.root, "t1")
        assert (story.core / "precious.log").read_text() == "not in git"
        assert body.verify(displaced, story.root) == []


def test_a_missing_commit_stops_it_before_the_first_change(story: Story) -> None:
    lock = story.checkpoint()
    shutil.rmtree(story.core)
    shutil.rmtree(story.root / "extensions/beta")
    bundle = next(path for path in story.bundles.iterdir() if path.name.startswith("extensions-beta"))
    data = bundle.read_bytes()
    for damaged, code in ((None, "missing-commit"), (data[:-30] + b"\0" * 30, "bundle-broken")):
        if damaged is None:
            bundle.unlink()
        else:
            bundle.write_bytes(damaged)
        with pytest.raises(Refused) as caught:
            story.stage(lock)
        assert caught.value.code == code
        assert not story.core.exists()
        assert not (story.root / ".lych-stage").exists()
        assert git(story.root / "extensions/alpha", "for-each-ref", "refs/lych/staged") == ""


def test_a_lock_with_another_tree_is_refused(story: Story) -> None:
    lock = story.checkpoint()
    first, *rest = lock.repos
    wrong = type(first)(**{**{name: getattr(first, name) for name in first.__slots__}, "tree": "1" * 40})
    with pytest.raises(Refused) as caught:
        story.stage(BodyLock(checkpoint="c1", created_at="", repos=(wrong, *rest)))
    assert caught.value.code == "lock-tree"


def test_nothing_that_git_does_not_hold_is_lost(story: Story) -> None:
    """Ignored files that the coming tree overwrites, or no longer ignores, wait aside and come back."""
    commit(story.core, {"build.log.txt": "tracked in the past\n", ".gitignore": "*.log\n__pycache__/\n"})
    git(story.core, "rm", "-q", "build.log.txt")
    (story.core / "tracked.log").write_text("tracked then\n")
    (story.core / "conf").write_text("conf as a file\n")
    git(story.core, "add", "-f", "tracked.log")
    commit(story.core, {"data/one": "1\n"})
    lock = story.checkpoint()
    git(story.core, "rm", "-q", "-r", "tracked.log", "conf", "data")
    commit(story.core, {".gitignore": "*.log\n__pycache__/\nconf/\ncache/\ndata\n"})
    (story.core / "tracked.log").write_text("precious, ignored")
    (story.core / "conf").mkdir()
    (story.core / "conf/key").write_text("precious, where a file must go")
    (story.core / "cache").mkdir()
    (story.core / "cache/x").write_text("ignored now, not then")
    (story.core / "data").symlink_to(story.root)
    (story.core / "still.log").write_text("ignored then and now")
    now = story.all_contents()
    outside = contents(story.root, not_ours)
    displaced = story.restore(lock)
    assert body.verify(lock, story.root) == []
    assert (story.core / "still.log").read_text() == "ignored then and now"
    assert contents(story.root, not_ours) == outside
    body.switch(lock, story.root, "t1")
    body.switch_back(displaced, story.root, "t1")
    assert story.all_contents() == now
    body.switch(lock, story.root, "t1")
    assert body.verify(lock, story.root) == []
    body.switch_back(displaced, story.root, "t1")
    assert story.all_contents() == now


def test_a_repository_that_the_lock_does_not_know_is_moved_aside(story: Story) -> None:
    lock = story.checkpoint()
    make_repository(story.root / "extensions/later", {"a": "1\n"})
    (story.root / "extensions/later/dirt").write_text("d")
    now = contents(story.root / "extensions/later")
    displaced = story.restore(lock)
    assert [member.path for member in body.discover(story.root, "core", EXTENSIONS)] == list(NAMES)
    body.bundle_lock(displaced, story.root, "t1", story.bundles / "safety")
    assert len(list((story.bundles / "safety").iterdir())) == 4
    body.switch_back(displaced, story.root, "t1")
    assert contents(story.root / "extensions/later") == now


def test_the_safety_copy_is_a_body_like_any_other(story: Story, tmp_path: Path) -> None:
    lock = story.checkpoint()
    evolve(story.core)
    soil(story.core)
    dirty = story.all_contents()
    displaced = story.restore(lock)
    body.bundle_lock(displaced, story.root, "t1", tmp_path / "safety")
    body.unstage(lock, story.root, "t1")
    shutil.rmtree(story.shadow)
    place = story.core.stat().st_ino
    body.stage(displaced, story.root, tmp_path / "safety", "t2")
    story.displace("t2")
    body.switch(displaced, story.root, "t2")
    assert (story.all_contents(), story.core.stat().st_ino) == (dirty, place)


def test_an_operation_in_progress_is_set_aside(story: Story) -> None:
    lock = story.checkpoint()
    evolve(story.core)
    (story.core / ".git/MERGE_HEAD").write_text(git(story.core, "rev-parse", "HEAD"))
    (story.core / ".git/rebase-merge").mkdir()
    (story.core / ".git/rebase-merge/onto").write_text("x")
    story.restore(lock)
    assert body.verify(lock, story.root) == []
    assert body.scan(body.discover(story.root, "core", EXTENSIONS)).signature == lock.signature
    assert (story.core / ".git/lych-displaced/t1/rebase-merge/onto").read_text() == "x"


def test_a_stale_lock_goes_only_with_proof(story: Story) -> None:
    lock = story.checkpoint()
    evolve(story.core)
    story.stage(lock)
    story.displace()
    (story.core / ".git/index.lock").write_text("")
    with pytest.raises(Refused) as caught:
        body.switch(lock, story.root, "t1")
    assert caught.value.code == "locked"
    body.switch(lock, story.root, "t1", alone=True)
    assert body.verify(lock, story.root) == []


@pytest.mark.parametrize("index", [b"nonsense", b"", None])
def test_a_broken_index_stops_nothing(story: Story, index: bytes | None) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    evolve(story.core)
    (story.core / "untracked").write_text("u")
    evolved = story.all_contents()
    file = story.core / ".git/index"
    file.unlink()
    if index is not None:
        file.write_bytes(index)
    displaced = story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []
    body.switch_back(displaced, story.root, "t1")
    assert story.all_contents() == evolved


def test_a_repository_that_did_not_move_is_compared_by_content_and_left_alone(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    evolve(story.core)
    indexes = {name: (story.root / name / ".git/index").stat() for name in NAMES}
    story.stage(lock)
    story.displace()
    # As stat cannot tell: git would call it clean by the index that is there.
    readme = next(path for path in (story.root / "extensions/beta").iterdir() if path.is_file())
    before = readme.stat()
    readme.write_bytes(readme.read_bytes().swapcase())
    os.utime(readme, ns=(before.st_atime_ns, before.st_mtime_ns))
    body.switch(lock, story.root, "t1")
    assert story.all_contents() == sealed
    moved = {name for name in NAMES if (story.root / name / ".git/index").stat() != indexes[name]}
    assert moved == {"core", "extensions/beta"}


def test_bytecode_does_not_outlive_its_source(story: Story) -> None:
    lock = story.checkpoint()
    commit(story.core, {"later/__init__.py": "", "later/sub/__init__.py": ""})
    for place in ("", "core", "later", "later/sub"):
        (story.core / place / "__pycache__").mkdir()
        (story.core / place / "__pycache__/x.cpython-311.pyc").write_bytes(b"old")
    story.restore(lock)
    assert not list(story.core.rglob("__pycache__"))
    assert not (story.core / "later").exists()


def test_a_linked_worktree_there_and_back(story: Story, tmp_path: Path) -> None:
    beta = story.root / "extensions/beta"
    beta.rename(tmp_path / "main")
    git(tmp_path / "main", "checkout", "-q", "--detach")
    git(tmp_path / "main", "worktree", "add", "-q", str(beta), "main")
    lock = story.checkpoint()
    sealed = story.all_contents()
    later = commit(beta, {"beta/__init__.py": "VERSION = 2\n"})
    (beta / "dirty").write_text("not committed\n")
    evolved = story.all_contents()
    displaced = story.restore(lock)
    assert (story.all_contents(), body.verify(lock, story.root)) == (sealed, [])
    assert git(beta, "status", "--porcelain") == ""
    assert git(tmp_path / "main", "rev-parse", "main") == later
    assert (beta / ".git").is_file()
    body.switch_back(displaced, story.root, "t1")
    assert story.all_contents() == evolved
    assert git(beta, "symbolic-ref", "HEAD") == "refs/heads/main"
    git(beta, "worktree", "lock", str(beta))
    body.unstage(lock, story.root, "t1")
    # A lock that does not know it moves it away whole, where it can still be read.
    without = BodyLock(checkpoint="c2", created_at="", repos=lock.repos[:-1])
    displaced = story.restore(without, "t2")
    assert not beta.exists()
    assert body.bundle_lock(displaced, story.root, "t2", tmp_path / "safety") == []
    body.switch_back(displaced, story.root, "t2")
    assert story.all_contents() == evolved


def test_the_root_as_core_with_everything_inside_it(tmp_path: Path) -> None:
    root = tmp_path / "all"
    make_repository(root, {"a": "1\n"})
    make_repository(root / "extensions/one", {"b": "1\n"})
    vault = root / "vault"
    ours = (root / "lychd.lock", vault)
    (root / "lychd.lock").write_text("ours")
    with body.scanning(body.discover(root, ".", EXTENSIONS), leave_out=ours) as scan, body.pinned(scan, "c1"):
        body.bundle(scan, "c1", vault / "bundles")
        lock = body.lock_of(scan, "c1", "now")
    commit(root / "extensions/one", {"b": "2\n"})
    (root / "a").write_text("2\n")
    (root / "untracked").write_text("u")
    shutil.copytree(vault, tmp_path / "vault before")
    body.stage(lock, root, vault / "bundles", "t1")
    displaced = body.displace(body.find(root, ".", EXTENSIONS), root, "t1", vault / "shadow", ours)
    body.switch(lock, root, "t1")
    assert body.verify(lock, root, ours) == []
    assert not (root / "untracked").exists()
    assert (root / "lychd.lock").read_text() == "ours"
    assert contents(vault / "bundles") == contents(tmp_path / "vault before/bundles")
    body.switch_back(displaced, root, "t1")
    assert (root / "untracked").read_text() == "u"
    assert (root / "a").read_text() == "2\n"


def test_a_shallow_clone(story: Story, tmp_path: Path) -> None:
    commit(story.core, {"more": "history\n"})
    source = tmp_path / "source"
    story.core.rename(source)
    git(story.root, "clone", "-q", "--depth=1", source.as_uri(), "core")
    lock = story.checkpoint()
    sealed = story.all_contents()
    shutil.rmtree(story.core)
    story.restore(lock)
    assert story.all_contents() == sealed
    assert git(story.core, "rev-list", "--count", "HEAD") == "1"


def test_a_shallow_clones_checkpoint_in_a_full_clone_that_lost_its_commit(story: Story, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(story.core, source, symlinks=True)
    commit(source, {"more": "history\n"})
    for number, full in enumerate((False, True)):
        shutil.rmtree(story.core)
        shutil.rmtree(story.bundles, ignore_errors=True)
        git(story.root, "clone", "-q", "--depth=1", source.as_uri(), "core")
        lock = story.checkpoint()
        shutil.rmtree(story.core)
        git(story.root, "clone", "-q", source.as_uri(), "core")
        git(story.core, "reset", "-q", "--hard", "HEAD~1")
        if not full:
            git(story.core, "checkout", "-q", "--orphan", "other")
            commit(story.core, {"other": "1\n"})
            git(story.core, "branch", "-q", "-D", "main")
        git(story.core, "remote", "remove", "origin")
        git(story.core, "reflog", "expire", "--expire=now", "--all")
        git(story.core, "gc", "-q", "--prune=now")
        story.restore(lock, f"t{number}")
        assert body.verify(lock, story.root) == []
        count = git(story.core, "rev-list", "--count", "HEAD")
        assert count == (git(source, "rev-list", "--count", "HEAD") if full else "1")
        git(story.core, "fsck", "--full")


def test_a_damaged_file_in_the_object_store_is_found_before_the_freeze(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    (story.core / "README").write_text("so that it must be written\n")
    blob = git(story.core, "rev-parse", "HEAD:README")
    path = story.core / ".git/objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes([data[-4] ^ 255]) + data[-3:])
    story.restore(lock)
    assert story.all_contents() == sealed
    assert git(story.core, "fsck", "--full") == ""


def test_a_file_that_is_kept_from_its_filter_is_not_dirty(story: Story) -> None:
    commit(story.core, {".gitattributes": "*.big filter=store\nplain.big -filter\n", "plain.big": "raw"})
    assert story.checkpoint().repos[0].captured == ""


def test_a_sha256_repository(story: Story) -> None:
    shutil.rmtree(story.root / "extensions/beta")
    (story.root / "extensions/beta").mkdir()
    git(story.root / "extensions/beta", "init", "-q", "--object-format=sha256")
    commit(story.root / "extensions/beta", {"a": "1\n"})
    lock = story.checkpoint()
    sealed = story.all_contents()
    shutil.rmtree(story.root / "extensions/beta")
    story.restore(lock)
    assert story.all_contents() == sealed


def test_the_safety_bundles_give_way_to_workers_that_start(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, program = tmp_path / "said", tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *"bundle create"*) nice >> "{said}" ;; esac\n'
                       f'exec "{shutil.which("git")}" "$@"\n')
    program.chmod(0o755)
    displaced, mine = story.displace(), os.nice(0)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    body.bundle_lock(displaced, story.root, "t1", tmp_path / "safety")
    assert said.read_text().split() == [str(max(10, mine))] * len(NAMES)
    assert os.nice(0) == mine  # only the threads that wrote them
