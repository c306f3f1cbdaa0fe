"""A repository that breaks between a step and its clean-up: the clean-up ends all the same, on the old side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import body
from tests.fixtures.federation import commit, git
from tests.fixtures.trees import contents
from tests.fixtures.workers import Lych
from tests.integration.test_body_restore import Story

_KILLED_AFTER_STAGING = """
import os, signal
from lych_checkpoint import body
from lych_checkpoint.cli import main
stage = body.stage
def staged(*arguments):
    stage(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
body.stage = staged
main(["restore", "latest", "--yes"], prog_name="lych-checkpoint")
"""


def tear_head(repository: Path) -> None:
    (repository / ".git/HEAD").write_bytes(b"")


def tear_config(repository: Path) -> None:
    (repository / ".git/config").write_text("[core\n\tbare")


def leave_locks(repository: Path) -> None:
    """As a git does that was killed while it wrote our refs."""
    for ref in (repository / ".git/refs/lych").rglob("*"):
        if ref.is_file():
            ref.with_name(f"{ref.name}.lock").touch()


TEARS = [tear_head, tear_config, leave_locks]


@pytest.fixture
def story(federation_root: Path, tmp_path: Path) -> Story:
    return Story(federation_root, tmp_path / "vault")


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_repository_keeps_nothing_staged_and_nothing_pinned_elsewhere(
    story: Story, tear: Callable[[Path], None],
) -> None:
    lock = story.checkpoint()
    commit(story.core, {"later": "1\n"})
    now = story.all_contents()
    story.stage(lock)
    tear(story.core)
    body.unstage(lock, story.root, "t1")
    body.unpin(body.find(story.root, "core", ("extensions/*",)), "c1")
    assert not (story.root / ".lych-stage").exists()
    assert story.all_contents() == now
    others = [story.root / "extensions/alpha", *([story.core] if tear is leave_locks else [])]
    assert [git(one, "for-each-ref", "refs/lych") for one in others] == [""] * len(others)


def test_locks_of_our_own_refs_that_a_killed_git_left_stop_no_pin(story: Story) -> None:
    story.checkpoint()
    leave_locks(story.core)
    (story.core / ".git/refs/heads/main.lock").touch()
    story.checkpoint()
    assert (story.core / ".git/refs/heads/main.lock").exists()
    assert not list((story.core / ".git/refs/lych").rglob("*.lock"))


def test_recover_ends_a_killed_staging_whatever_broke_since(
    lych: Lych, federation_root: Path, database: str, lych_environment: dict[str, str], tmp_path: Path,
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE t (n int)")
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    commit(federation_root / "core", {"later": "1\n"})
    done = subprocess.run([sys.executable, "-c", _KILLED_AFTER_STAGING], check=False, cwd=tmp_path,
                          env={**os.environ, **lych_environment})
    assert done.returncode == -signal.SIGKILL
    now = contents(federation_root)
    assert any(path.startswith(b".lych-stage") for path in now)
    for tear, name in zip(TEARS, ("core", "extensions/alpha", "extensions/beta"), strict=True):
        tear(federation_root / name)
    recovered = lych("recover", "--json")
    assert (recovered.code, recovered.json["recovered"]) == (0, "old"), recovered.out + recovered.err
    assert contents(federation_root / "core") == {
        path.removeprefix(b"core/"): entry for path, entry in now.items()
        if path.startswith(b"core/") and not path.startswith(b"core/.git/")}
    assert not (federation_root / ".lych-stage").exists()
    assert lych("recover", "--json").json["recovered"] is None
