"""The file that proves a worker's death is the worker's own, in a directory that nobody else can write to."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from lych_checkpoint.errors import Refused
from lych_checkpoint.worker import alive
from tests.fixtures.lacking import need_root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are, not made yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"lych-{os.geteuid()}"


def test_file_is_locked_until_its_holder_is_gone(folder: Path) -> None:
    path, descriptor = alive.hold("boot")
    assert path == folder / "boot.alive"
    with path.open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _of_another(folder: Path) -> None:
    need_root()
    folder.mkdir()
    os.chown(folder, 65534, 65534)


def _open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to("elsewhere")


def _file(folder: Path) -> None:
    folder.touch()


@pytest.mark.parametrize("made", [_of_another, _open_to_all, _link, _file])
def test_directory_that_another_could_write_to_is_refused(folder: Path, made: object) -> None:
    assert callable(made)
    made(folder)
    with pytest.raises(Refused) as refused:
        alive.hold("boot")
    assert refused.value.code == "alive-unsafe"
    assert str(folder) in refused.value.where
    assert not list(folder.parent.rglob("*.alive"))
