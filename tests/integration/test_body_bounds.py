"""What a restore may meet in a tree that an agent wrote: it ends, soon, and on what was sealed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import objects
from tests.fixtures.federation import commit, git
from tests.fixtures.trees import contents
from tests.integration.test_body_hostile import SPOILS
from tests.integration.test_body_restore import NAMES, Story

EXTENSIONS = ("extensions/*",)


@pytest.fixture
def story(federation_root: Path, tmp_path: Path) -> Story:
    return Story(federation_root, tmp_path / "vault")


@pytest.mark.timeout(60)  # far below what git may take
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_restore_passes_over_what_never_ends(story: Story, spoil: Callable[[Path], None]) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    spoil(story.core)
    story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []


@pytest.mark.timeout(60)
def test_an_object_that_is_a_pipe_is_given_up(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    monkeypatch.setattr(objects, "_QUICK_S", 0.5)
    path = story.core / ".git/objects" / lock.repos[0].commit[:2] / lock.repos[0].commit[2:]
    path.unlink()
    os.mkfifo(path)
    story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []


@pytest.mark.timeout(60)
def test_what_never_ends_and_comes_after_the_staging_stops_the_restore(story: Story) -> None:
    lock = story.checkpoint()
    story.stage(lock)
    os.mkfifo(story.core / ".gitignore")
    displaced = story.displace()
    assert displaced.repos[0].commit == "0" * 40
    with pytest.raises(Refused):
        body.switch(lock, story.root, "t1")
    body.switch_back(displaced, story.root, "t1")
    assert (story.core / ".gitignore").is_fifo()
    assert (story.core / "README").read_text() == "the core\n"


def by_a_file(story: Story) -> None:
    (story.root / "extensions/beta").mkdir()
    (story.root / "extensions/beta/.git").write_text("gitdir: ../../core/.git\n")


def by_a_symlink(story: Story) -> None:
    (story.root / "extensions/beta").symlink_to("../core")


@pytest.mark.parametrize("lead", [by_a_file, by_a_symlink])
def test_a_path_that_leads_to_another_member_is_made_anew(story: Story, lead: Callable[[Story], None]) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    commit(story.core, {"later": "1\n"})
    (story.root / "extensions/beta").rename(story.root / "beta before")
    lead(story)
    now = {name: contents(story.root / name) for name in NAMES[:2]}
    displaced = story.restore(lock)
    assert story.all_contents() == sealed
    assert body.verify(lock, story.root) == []
    assert [git(story.root / name, "status", "--porcelain") for name in NAMES] == [""] * 3
    body.switch_back(displaced, story.root, "t1")
    assert {name: contents(story.root / name) for name in NAMES[:2]} == now
    assert (story.root / "extensions/beta").is_symlink() == (lead is by_a_symlink)
    assert (story.root / "extensions/beta/.git").is_file() == (lead is by_a_file)


@pytest.mark.parametrize("index", ["whole", "broken"])
def test_files_too_large_to_capture_while_workers_are_frozen_are_moved_aside(story: Story, index: str) -> None:
    commit(story.core, {"tracked": "1\n", "small": "1\n"})
    commit(story.core, {".gitignore": "ignored\n"})
    (story.core / "ignored").write_text("1\n")
    git(story.core, "add", "-f", "ignored")
    git(story.core, "commit", "-qm", "Track it all the same")
    later = git(story.core, "rev-parse", "HEAD")
    git(story.core, "rm", "-q", "--cached", "ignored")
    (story.core / "ignored").rename(story.root / "kept")
    git(story.core, "commit", "-qm", "Forget it")
    lock = story.checkpoint()
    sealed = story.all_contents()
    git(story.core, "checkout", "-q", "--detach", later)
    # What is ignored, and tracked by an index that nobody can read, is just ignored: it stays where it is.
    large = ("untracked", "tracked", *(["ignored"] if index == "whole" else []))
    if index == "broken":
        (story.core / "ignored").unlink()
    for number, name in enumerate(large):
        (story.core / name).write_bytes(b"%d" % number * 3000)
    (story.core / "small").write_text("2\n")
    if index == "broken":
        (story.core / ".git/index").write_bytes(b"DIRC nonsense")
    dirty = story.all_contents()
    story.stage(lock)
    displaced = body.displace(body.find(story.root, "core", EXTENSIONS), story.root, "t1", story.shadow,
                              limit_bytes=2000)
    assert body.unheld(story.root, "t1") == {"core": tuple(sorted(large))}
    store = next(story.shadow.glob("core-*"))
    held = git(store, "--git-dir=.", "ls-tree", "--name-only", displaced.repos[0].captured, "untracked", "tracked")
    assert held == ""
    for _ in range(2):
        body.switch(lock, story.root, "t1")
        assert story.all_contents() == sealed
        assert body.verify(lock, story.root) == []
        body.switch_back(displaced, story.root, "t1")
        assert story.all_contents() == dirty


@pytest.mark.timeout(60)
def test_a_terabyte_is_not_captured_while_workers_are_frozen(story: Story) -> None:
    lock = story.checkpoint()
    sealed = story.all_contents()
    (story.core / "sparse").touch()
    os.truncate(story.core / "sparse", 1 << 40)
    story.restore(lock)
    assert story.all_contents() == sealed
    [kept] = (story.root / ".lych-stage/t1/old-files").rglob("sparse")
    assert kept.stat().st_size == 1 << 40


@pytest.mark.parametrize("name", [".lych-stage", ".lych-stage/t1"])
def test_the_place_of_a_restore_is_no_way_out(story: Story, tmp_path: Path, name: str) -> None:
    lock, outside = story.checkpoint(), tmp_path / "outside"
    outside.mkdir()
    (story.root / name).parent.mkdir(exist_ok=True)
    (story.root / name).symlink_to(outside)
    with pytest.raises(Refused) as caught:
        story.stage(lock)
    assert caught.value.code == "leaves-root"
    assert not list(outside.iterdir())
