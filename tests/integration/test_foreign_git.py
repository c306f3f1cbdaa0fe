"""Somebody's git at work while a restore begins: a live one is not robbed of its lock, a dead one stops nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lych_checkpoint import coordinator, gate, restore
from lych_checkpoint.errors import Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.repository import holders
from tests.fixtures.client import wait_until
from tests.fixtures.federation import commit, git


@contextmanager
def committing(repository: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A commit that waits for its editor, with the index's lock held; the editor ends when its stdin does."""
    lock = repository / ".git" / "index.lock"
    child = subprocess.Popen(
        ["git", "-C", repository, "-c", "user.name=Mina", "-c", "user.email=mina@example.org", "-c",
         "core.editor=read line; echo Done >", "commit", "-q", "-a"],
        stdin=subprocess.PIPE, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "TERM": "xterm"})
    assert child.stdin is not None
    try:
        wait_until(lock.exists)
        yield child
    finally:
        child.stdin.close()
        child.kill()
        child.wait()


def test_a_restore_leaves_a_live_git_its_lock_and_takes_a_dead_ones(
    opened: Callable[..., Federation], federation_root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation, core = opened(), federation_root / "core"
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    first = git(core, "rev-parse", "HEAD")
    commit(core, {"core/__init__.py": "VERSION = 2\n"})
    gate.check(federation)
    (core / "core/__init__.py").write_text("VERSION = 3\n")
    monkeypatch.setattr(holders, "_PATIENCE_S", 0.2)
    with committing(core) as live:
        with pytest.raises(Refused, match=rf"process {live.pid} \(git\) may hold index\.lock") as caught:
            restore.restore(federation, sealed)
        assert caught.value.code == "locked"
        assert restore.recover(federation) == {"recovered": None}
        assert gate.check(federation).verdict == "aligned"
        assert live.stdin is not None
        live.stdin.close()
        assert live.wait(30) == 0
    assert git(core, "log", "-1", "--format=%s") == "Done"
    gate.check(federation)
    (core / "core/__init__.py").write_text("VERSION = 4\n")
    with committing(core) as dead:
        dead.kill()
        dead.wait()
        assert (core / ".git/index.lock").exists()
    restore.restore(federation, sealed)
    assert git(core, "rev-parse", "HEAD") == first
    assert not (core / ".git/index.lock").exists()
