"""A proof of death: a locked file that the worker shares with every child it forks.

The kernel drops a flock when the last process that inherited it is gone, whatever killed them. So whoever can lock
the file has proof that the worker and all its pool children are dead, and reused pids cannot fool it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


def hold(boot: str) -> tuple[Path, int]:
    """Make and lock the file for this worker. The descriptor stays open until the last child is gone."""
    folder = Path(tempfile.gettempdir()) / f"lych-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    path = folder / f"{boot}.alive"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path, descriptor
