"""Temporary directories for a git of ours. What a killed process left of them, a later one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "lych-scratch-"
#: A git that outlived its parent may work on in what nobody holds any more.
_OLD_S = 3600.0


@contextmanager
def scratch(within: Path | None = None) -> Iterator[Path]:
    """Give an empty directory for the body of the `with`.

    Args:
        within: where it is made, so that a kill leaves it there; the system's temporary directory if None.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=within) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a file system without locks: its age alone must do
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def sweep() -> None:
    """Remove the directories of this user's dead processes from the system's temporary directory."""
    with os.scandir(tempfile.gettempdir()) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
    for path in found:
        with suppress(OSError):  # gone meanwhile, somebody else's, or held
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                stat = os.fstat(descriptor)
                if stat.st_uid == os.geteuid() and stat.st_mtime < time.time() - _OLD_S:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)
