"""A proof of death: a locked file that the worker shares with every child it forks.

The kernel drops a flock when the last process that inherited it is gone, whatever killed them. So whoever can lock
the file has proof that the worker and all its pool children are dead, and reused pids cannot fool it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path

from lych_checkpoint.errors import Refused


def hold(boot: str) -> tuple[Path, int]:
    """Make and lock the file for this worker. The descriptor stays open until the last child is gone.

    Raises:
        Refused: its directory belongs to somebody else, who could forge a proof, or nothing can be made there.
    """
    folder = Path(tempfile.gettempdir()) / f"lych-{os.geteuid()}"
    path = folder / f"{boot}.alive"
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise Refused("it is not a directory that this user alone can write to", str(folder),
                          "remove it, or set TMPDIR", "alive-unsafe")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refused(f"cannot be made: {error.strerror}", str(path), "mend that directory, or set TMPDIR",
                      "alive-unsafe") from error
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path, descriptor
