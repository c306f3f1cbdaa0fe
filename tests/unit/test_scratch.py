"""Temporary directories of ours: gone after use, and swept where a killed process left them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lych_checkpoint.repository import scratch

DIE = ("import os, signal\nfrom lych_checkpoint.repository.scratch import scratch\n"
       "with scratch() as place:\n    (place / 'index').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n")


def age(path: Path) -> None:
    """Make a directory look as if nobody wrote into it for two hours."""
    then = path.stat().st_mtime - 7200
    os.utime(path, (then, then))


def test_what_a_killed_process_left_is_swept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.scratch() as gone:
        assert list(gone.iterdir()) == []
    assert not gone.exists()
    done = subprocess.run([sys.executable, "-c", DIE], check=False, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    prefix = left.name[:len("lych-scratch-")]
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / f"{prefix}link").symlink_to(target)
    (tmp_path / f"{prefix}file").write_text("not a directory")
    other = tmp_path / f"{prefix}other"
    other.mkdir()
    os.chown(other, 12345 if os.geteuid() == 0 else -1, -1)
    with scratch.scratch() as held:
        scratch.sweep()
        assert left.exists()  # a git of that process may still work in it
        for path in (left, held, target, other):
            age(path)
        scratch.sweep()
        assert not left.exists()
        kept = {held, target, tmp_path / f"{prefix}link", tmp_path / f"{prefix}file"}
        assert set(tmp_path.iterdir()) == kept | ({other} if os.geteuid() == 0 else set())
