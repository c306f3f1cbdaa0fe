"""Scan, re-check, pin and bundle on real repositories."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.body import scans as room
from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.lens import Lens
from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.trees import contents, git_contents

EXTENSIONS = ("extensions/*",)
NAMES = ("core", "extensions/alpha", "extensions/beta")


def members(root: Path) -> tuple[body.Member, ...]:
    return body.discover(root, "core", EXTENSIONS)


def refused(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


def test_create_leaves_every_repository_as_it_was(federation_root: Path, tmp_path: Path) -> None:  # I9
    core = federation_root / "core"
    git(core, "checkout", "-q", "-b", "work")
    os.utime(core / "README")  # racily clean: whoever refreshes would want to write the index

    def state() -> object:
        return {name: (contents(federation_root / name), git_contents(federation_root / name)) for name in NAMES}

    before = state()
    with body.scanning(members(federation_root)) as scan, body.pinned(scan, "c1"):
        body.recheck(scan)
        body.bundle(scan, "c1", tmp_path / "bundles")
    assert state() == before
    assert git(core, "for-each-ref", "--format=%(refname)", "refs/lych") == "refs/lych/checkpoints/c1"
    body.unpin(members(federation_root), "c1")
    body.unpin(members(federation_root), "c1")
    assert git(core, "for-each-ref", "refs/lych") == ""


def test_a_scan_names_commit_tree_branch_and_remote(federation_root: Path) -> None:
    alpha = federation_root / "extensions/alpha"
    git(alpha, "checkout", "-q", "--detach")
    git(federation_root / "core", "remote", "add", "origin", "https://me:pw@git.example.org/core.git")
    scan = body.scan(members(federation_root))
    core, other, _ = scan.pins
    assert (core.branch, core.remote, other.branch) == ("main", "https://git.example.org/core.git", "")
    assert core.tree == git(federation_root / "core", "rev-parse", "HEAD^{tree}")
    assert scan.worktree_check == "rescan"
    signature, repos = body.pins(members(federation_root))
    assert signature == scan.signature == body.lock_of(scan, "c1", "now").signature
    assert repos["extensions/alpha"] == {"commit": other.commit, "tree": other.tree}


def _edit(core: Path) -> None:
    (core / "README").write_text("changed\n")


def _edit_unseen_by_stat(core: Path) -> None:
    stat = (core / "README").stat()
    (core / "README").write_text("the CORE\n")
    os.utime(core / "README", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _delete(core: Path) -> None:
    (core / "README").unlink()


def _untracked(core: Path) -> None:
    (core / "new dir").mkdir()
    (core / "new dir" / "odd\nname").write_text("")


def _stage(core: Path) -> None:
    _edit(core)
    git(core, "add", "README")


def _mode(core: Path) -> None:
    git(core, "config", "core.fileMode", "false")
    (core / "README").chmod(0o755)


def _replace_by_link(core: Path) -> None:
    (core / "README").unlink()
    (core / "README").symlink_to("core")


def _lock(core: Path) -> None:
    (core / ".git/index.lock").touch()


def _merge(core: Path) -> None:
    (core / ".git/MERGE_HEAD").write_text("0" * 40)


def _rebase(core: Path) -> None:
    (core / ".git/rebase-merge").mkdir()


DIRT = [_edit, _edit_unseen_by_stat, _delete, _untracked, _stage, _mode, _replace_by_link, _lock, _merge, _rebase]


@pytest.mark.parametrize("soil", DIRT)
def test_a_dirty_repository_is_refused_by_name(federation_root: Path, soil: Callable[[Path], None]) -> None:
    soil(federation_root / "core")
    found = refused(lambda: body.scan(members(federation_root)))
    assert (found.code, found.where) == ("dirty", "core")
    assert found.mend


def test_the_message_names_five_files(federation_root: Path) -> None:
    for number in range(7):
        (federation_root / "core" / f"new{number}").touch()
    found = refused(lambda: body.scan(members(federation_root)))
    assert found.what.count("(untracked)") == 5
    assert "and 2 more" in found.what


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_file_that_git_looks_away_from_is_refused(federation_root: Path, flag: str) -> None:
    git(federation_root / "core", "update-index", flag, "README")
    assert refused(lambda: body.scan(members(federation_root))).code == "hidden"


def test_a_nested_repository_is_refused_unless_ignored_or_listed(federation_root: Path) -> None:
    core = federation_root / "core"
    make_repository(core / "plugins/one", {"a": "1\n"})
    assert refused(lambda: body.scan(members(federation_root))).code == "nested"
    listed = body.discover(federation_root, "core", (*EXTENSIONS, "core/plugins/*"))
    assert len(body.scan(listed).pins) == 4
    commit_ignore = {".gitignore": "plugins/\n"}
    (core / "plugins").rename(federation_root / "aside")
    commit(core, commit_ignore)
    (federation_root / "aside").rename(core / "plugins")
    assert len(body.scan(members(federation_root)).pins) == 3


def test_a_submodule_that_is_no_member_is_refused(federation_root: Path) -> None:
    core = federation_root / "core"
    git(core, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(federation_root / "extensions/beta"),
        "sub")
    git(core, "commit", "-q", "-m", "Add it")
    assert refused(lambda: body.scan(members(federation_root))).code == "submodule"
    assert len(body.scan(body.discover(federation_root, "core", ("extensions/alpha", "core/sub"))).pins) == 3


def test_a_missing_commit_is_broken(federation_root: Path) -> None:
    shutil.rmtree(federation_root / "core/.git/objects")
    (federation_root / "core/.git/objects").mkdir()
    assert refused(lambda: body.scan(members(federation_root))).code in ("broken", "git-failed")


def test_exactly_our_own_paths_are_left_out(federation_root: Path) -> None:
    core = federation_root / "core"
    alone = body.discover(core, ".", ())
    (core / "lychd.lock").write_text("ours")
    (core / "vault").mkdir()
    (core / "vault" / "file").write_text("ours")
    (core / ".lych-stage").mkdir()
    (core / ".lych-stage" / "file").write_text("ours")
    assert refused(lambda: body.scan(alone)).code == "dirty"
    ours = (core / "lychd.lock", core / "vault")
    with body.scanning(alone, leave_out=ours) as scan:
        (core / "lychd.lock").write_text("again")
        body.recheck(scan)
        (core / "lychd.lock2").write_text("theirs")
        assert refused(lambda: body.recheck(scan)).code == "body-moved"


def _commit(core: Path) -> None:
    commit(core, {"more": "x\n"})


def _switch_branch(core: Path) -> None:
    git(core, "checkout", "-q", "-b", "other")


def _detach(core: Path) -> None:
    git(core, "checkout", "-q", "--detach")


def _new_in_ignored_free_directory(core: Path) -> None:
    (core / "empty" / "inner" / "new").write_text("")


def _rename(core: Path) -> None:
    (core / "README").rename(core / "README2")


MOVES = [_commit, _switch_branch, _detach, _edit, _edit_unseen_by_stat, _delete, _untracked, _stage, _rename, _lock,
         _merge, _new_in_ignored_free_directory]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("move", MOVES)
def test_recheck_notices(federation_root: Path, move: Callable[[Path], None], watched: bool) -> None:
    (federation_root / "core/empty/inner").mkdir(parents=True)
    with body.scanning(members(federation_root)) as scan:
        assert scan.worktree_check == "inotify"
        used = scan if watched else body.scan(members(federation_root))
        body.recheck(used)
        move(federation_root / "core")
        found = refused(lambda: body.recheck(used))
        assert (found.code, found.where) == ("body-moved", "core")


def test_recheck_looks_again_where_nothing_that_counts_happened(
    federation_root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = federation_root / "core"
    commit(core, {".gitignore": "*.log\n"})
    looked: list[str] = []
    look = room._look
    monkeypatch.setattr(room, "_look", lambda reader, member, *rest, **more: (
        looked.append(member.path), look(reader, member, *rest, **more))[1])
    with body.scanning(members(federation_root)) as scan:
        looked.clear()
        body.recheck(scan)
        assert looked == []
        (core / "run.log").write_text("ignored")
        git(core, "update-index", "--refresh")
        body.recheck(scan)
        assert looked == ["core"]


@pytest.mark.parametrize("folder", ["empty/deep", ":(exclude)x", "-x", "new\nline", "core/inner"])
def test_a_directory_that_git_does_not_know_is_watched(federation_root: Path, folder: str) -> None:
    core = federation_root / "core"
    commit(core, {".gitignore": "cache/\n"})
    for name in (folder, "cache/deep"):
        (core / name).mkdir(parents=True)
    with body.scanning(members(federation_root)) as scan:
        (core / "cache/deep/file").write_text("ignored")
        assert scan.watch is not None
        assert scan.watch.touched() == set()
        (core / folder / "file").write_text("new")
        assert refused(lambda: body.recheck(scan)).where == "core"
        assert scan.worktree_check == "inotify"


def test_an_edit_below_a_core_that_is_the_root_is_seen(federation_root: Path) -> None:
    make_repository(federation_root / "root", {"README": "the root\n"})
    (federation_root / "root/.git").rename(federation_root / ".git")
    shutil.rmtree(federation_root / "root")
    (federation_root / "core").rename(federation_root / "extensions/core")
    git(federation_root, "checkout", "-q", "--", "README")
    found = body.discover(federation_root, ".", EXTENSIONS)
    for _ in range(5):  # which of two is armed first is chance
        with body.scanning(found) as scan:
            _edit(federation_root / "extensions/alpha")
            assert refused(lambda: body.recheck(scan)).where == "extensions/alpha"
        git(federation_root / "extensions/alpha", "checkout", "-q", "--", ".")
        git(federation_root / "extensions/alpha", "clean", "-q", "-f")


def test_an_edit_after_the_status_returned_is_seen(
    federation_root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Armed after it, the watch would know nothing of that."""
    changes = worktree.changes

    def edited_since(lens: Lens) -> list[worktree.Change]:
        found = changes(lens)
        if lens.work_tree == federation_root / "core":
            _edit(federation_root / "core")
        return found

    monkeypatch.setattr(worktree, "changes", edited_since)
    with body.scanning(members(federation_root)) as scan:
        monkeypatch.setattr(worktree, "changes", changes)
        assert scan.worktree_check == "inotify"
        assert refused(lambda: body.recheck(scan)).where == "core"


@pytest.mark.parametrize("move", [_commit, _switch_branch, _detach])
def test_recheck_notices_in_a_repository_with_packed_refs(
    federation_root: Path, move: Callable[[Path], None],
) -> None:
    git(federation_root / "core", "pack-refs", "--all")
    assert not (federation_root / "core/.git/refs/heads/main").exists()
    with body.scanning(members(federation_root)) as scan:
        body.recheck(scan)
        move(federation_root / "core")
        git(federation_root / "core", "pack-refs", "--all")
        assert refused(lambda: body.recheck(scan)).where == "core"


def test_without_watches_every_recheck_scans(federation_root: Path) -> None:
    with body.scanning(members(federation_root)) as scan:
        assert scan.watch is not None
        scan.watch.complete = False
        assert scan.worktree_check == "rescan"
        body.recheck(scan)
        _edit(federation_root / "core")
        assert refused(lambda: body.recheck(scan)).code == "body-moved"


def test_an_overflow_is_not_overlooked(federation_root: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with body.scanning(members(federation_root)) as scan:
        readme, other = federation_root / "core/README", federation_root / "extensions/alpha/README"
        for _ in range(limit // 2 + 10):
            os.utime(readme)
            os.utime(other)
        _edit(federation_root / "extensions/beta")
        assert refused(lambda: body.recheck(scan)).where == "extensions/beta"
        assert scan.worktree_check == "rescan"


def test_a_pin_refuses_a_head_that_moved_and_leaves_nothing(federation_root: Path) -> None:
    scan = body.scan(members(federation_root))
    commit(federation_root / "extensions/beta", {"x": "2\n"})

    def pin() -> None:
        with body.pinned(scan, "c1"):
            pytest.fail("was pinned")

    assert refused(pin).code == "body-moved"
    for name in NAMES:
        assert git(federation_root / name, "for-each-ref", "refs/lych") == ""


def test_a_pinned_commit_survives_garbage_collection(federation_root: Path) -> None:
    core = federation_root / "core"
    kept = commit(core, {"x": "kept\n"})
    body.pin(body.scan(members(federation_root)), "c1")
    git(core, "reset", "-q", "--hard", "HEAD~1")
    lost = commit(core, {"x": "lost\n"})
    git(core, "reset", "-q", "--hard", "HEAD~1")
    git(core, "reflog", "expire", "--expire=now", "--all")
    git(core, "gc", "-q", "--prune=now")
    assert git(core, "cat-file", "-t", kept) == "commit"
    assert git(core, "rev-list", "--all", "--objects", "--missing=print").count(lost) == 0


def test_relations(federation_root: Path, tmp_path: Path) -> None:
    core = federation_root / "core"
    first = git(core, "rev-parse", "HEAD")
    second = commit(core, {"x": "2\n"})
    tree = git(core, "rev-parse", f"{first}^{{tree}}")
    git(core, "checkout", "-q", "-b", "side", first)
    side = commit(core, {"y": "3\n"})
    git(core, "checkout", "-q", "-b", "same", first)
    git(core, "commit", "-q", "--allow-empty", "-m", "Same tree")
    same = git(core, "rev-parse", "HEAD")

    def standing(of: str) -> body.Standing:
        return body.Standing(of, git(core, "rev-parse", f"{of}^{{tree}}"))

    assert body.relation(core, standing(first), first, tree) == "aligned"
    assert body.relation(core, standing(same), first, tree) == "aligned"
    assert body.relation(core, standing(second), first, tree) == "ahead"
    assert body.relation(core, standing(first), second, "") == "behind"
    assert body.relation(core, standing(side), second, "") == "diverged"
    assert body.relation(core, standing(side), "1" * 40, "") == "unknown"
    git(tmp_path, "clone", "-q", "--depth=1", "--no-single-branch", core.as_uri(), "shallow")
    assert body.relation(tmp_path / "shallow", standing(side), second, "") == "unknown"
    assert (body.is_shallow(tmp_path / "shallow"), body.is_shallow(core)) == (True, False)


def test_survey_and_fingerprint(federation_root: Path) -> None:
    core = federation_root / "core"
    assert body.survey(federation_root, "core", EXTENSIONS)["core"] == body.Standing(
        git(core, "rev-parse", "HEAD"), git(core, "rev-parse", "HEAD^{tree}"))
    before = body.fingerprint(federation_root, "core", EXTENSIONS)
    assert set(before) == set(NAMES)
    head = commit(core, {"x": "2\n"})
    assert body.fingerprint(federation_root, "core", EXTENSIONS) == {**before, "core": head}
    (core / ".git/HEAD").write_text("nonsense")
    assert body.fingerprint(federation_root, "core", EXTENSIONS)["core"] == ""
    assert set(body.survey(federation_root, "core", (*EXTENSIONS, "missing"))) == set(NAMES) - {"core"}
