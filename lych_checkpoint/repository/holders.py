"""Who may hold one of git's lock files. A lock outlives a git that was killed, and says nothing of its owner."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.place import Repository

#: A git that works in passing, as a worker's look at its commits, is waited for so long.
_PATIENCE_S = 10.0
_POLL_S = 0.05


def remove_stale(repository: Repository, lock: Path) -> None:
    """Remove a lock file whose owner is proven dead; one that goes meanwhile is gone.

    The proof: no process of this host has it open, and no git works in the repository. A git that waits for an editor
    has closed its lock, but stays in the working tree until it has renamed it. What runs in another pid namespace, or
    on another host, is not seen, and of other users' programs only root sees more than their names.

    Raises:
        Refused: its owner may live (code ``locked``).
    """
    end_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            seen = lock.lstat()
        except FileNotFoundError:
            return
        holder = next(_holders(repository, lock.name, seen), "")
        if not holder:
            break
        if time.monotonic() > end_s:
            raise Refused(f"{holder} may hold {lock.name}", str(repository.directory), "wait for it, or end it",
                          "locked")
        time.sleep(_POLL_S)
    try:
        if os.path.samestat(lock.lstat(), seen):  # else it is another one by now
            lock.unlink()
    except FileNotFoundError:
        return


def _holders(repository: Repository, lock: str, seen: os.stat_result) -> Iterator[str]:
    places = {os.path.realpath(place) for place in (repository.directory, repository.git_dir, repository.common)}
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            name = _name(pid)
            if _opens(pid, lock, seen) or (name.startswith("git") and _works_in(pid, places)):
                yield f"process {pid} ({name})"


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""  # it has ended


def _opens(pid: str, lock: str, seen: os.stat_result) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            path = f"/proc/{pid}/fd/{descriptor}"
            # By name first: the stat of what lies on a file system that hangs would hang too.
            if os.readlink(path).endswith(f"/{lock}") and os.path.samestat(os.stat(path), seen):
                return True
        except OSError:
            continue
    return False


def _works_in(pid: str, places: set[str]) -> bool:
    """Say whether the process is in one of the places; one that may not be looked at may be."""
    try:
        here = os.readlink(f"/proc/{pid}/cwd")
    except PermissionError:
        return True
    except OSError:
        return False
    return any(here == place or here.startswith(f"{place}/") for place in places)
