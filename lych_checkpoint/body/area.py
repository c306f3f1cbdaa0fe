"""Where a restore works below the root: what is staged, and what is displaced and kept whole.

``<root>/.lych-stage/<ticket>/``: ``new`` holds staged repositories, ``old`` displaced ones, each by a safe name;
``new-files`` and ``old-files`` hold loose files likewise; ``cleared`` holds marks; ``lock`` is held by every git that
a switch runs, so that a later one waits for orphans of a killed one. One file system, or renames could not be atomic.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lych_checkpoint.errors import Refused
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.repository.checkout import Aside
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.vault import flush_directory

PLACE = ".lych-stage"
Side = Literal["new", "old"]
_ORPHANS_S = 120
_POLL_S = 0.02
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(path: str) -> str:
    """Return a file name that is unique for a repository's path and safe whatever the path holds."""
    readable = _UNSAFE.sub("-", path).strip("-.")[:48] or "root"
    return f"{readable}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Area:
    """The place of one restore."""

    root: Path
    ticket: str

    @property
    def path(self) -> Path:
        """The place itself."""
        return self.root / PLACE / self.ticket

    def repository(self, side: Side, path: str) -> Path:
        """Where the repository ``path`` waits on that side."""
        return self.path / side / safe_name(path)

    def workshop(self) -> Path:
        """Where git directories of our own are made; what a kill leaves there goes with the place."""
        (self.path / "build").mkdir(exist_ok=True)
        return self.path / "build"

    def aside(self, side: Side, path: str, repository: Repository) -> Aside:
        """Where its loose files go when ``side`` is displaced."""
        name, other = safe_name(path), "new" if side == "old" else "old"
        return Aside(
            files=self.path / f"{side}-files" / name, waiting=self.path / f"{other}-files" / name,
            cleared=self.path / "cleared" / side / name, state=repository.git_dir / "lych-displaced" / self.ticket,
        )

    def forget_clearing(self, side: Side, path: str) -> None:
        """After a switch the other way: the next one must clear its way anew."""
        (self.path / "cleared" / side / safe_name(path)).unlink(missing_ok=True)

    def make(self) -> None:
        """Make the place.

        Raises:
            Refused: the root cannot be written (``root-read-only``), or the place is a symlink (``leaves-root``).
        """
        for place in (self.path.parent, self.path):
            if place.is_symlink():  # whoever writes the root would have us write elsewhere, perhaps as root
                raise Refused("is a symlink", str(place), "remove it", "leaves-root")
        try:
            make_directory(self.path.parent)
            self.path.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", str(self.path), "make the root writable",
                          "root-read-only") from error

    def remember(self, facts: dict[str, Any]) -> None:
        """Keep what the switch must know beside its lock, durably."""
        temporary = self.path / "facts.tmp"
        with temporary.open("w") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / "facts.json")
        flush_directory(self.path)

    def recall(self) -> dict[str, Any]:
        """Return what was kept; empty if nothing was."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "facts.json").read_text())
        except FileNotFoundError:
            return {}
        return facts

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold the place; the descriptor is for every git that works in it.

        Raises:
            Refused: somebody else, perhaps a git that outlived its parent, works here for too long (``locked``).
        """
        self.make()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(descriptor, self.path)
            yield descriptor
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what was staged; what was displaced and is still kept stays."""
        for name in ("new", "new-files", "build"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        kept = [path for name in ("old", "old-files") for path in (self.path / name).glob("*")]
        if not kept:
            shutil.rmtree(self.path, ignore_errors=True)
            place = self.root / PLACE
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _wait_for(descriptor: int, place: Path) -> None:
    deadline_s = time.monotonic() + _ORPHANS_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise Refused("somebody else works there", str(place), "end that process", "locked") from None
            time.sleep(_POLL_S)
        else:
            return


def flush(paths: Iterable[Path]) -> None:
    """Make everything on the file systems of ``paths`` durable: git does not sync the files that it checks out."""
    done: set[int] = set()
    library = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        device = path.stat().st_dev
        if device in done:
            continue
        done.add(device)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if library.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), "syncfs failed", str(path))
        finally:
            os.close(descriptor)
