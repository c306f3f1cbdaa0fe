"""The directory beside PGDATA where its copies lie: `.lych-<name>`, closed to everyone but PGDATA's owner."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lych_checkpoint.drivers import kernel
from lych_checkpoint.drivers.base import Evidence
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner

#: What a running server leaves in PGDATA and a copy must not start with.
STALE = ("postmaster.pid", "postmaster.opts")
#: Where the server keeps its replication slots, each a directory.
SLOTS = "pg_replslot"
_ROOM_BYTES = 256 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def copying(shelf: Path) -> Iterator[None]:
    """Turn the file system's errors into ours, for a block that makes a copy on a shelf.

    Raises:
        Refused: there is no room (code ``no-room``), or the copy cannot be made for another reason (``copy-failed``).
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Refused("there was no room left for the copy", str(shelf), "make room, then try again",
                          "no-room") from error
        name = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        raise Refused(f"the copy could not be made: {error.strerror}{name}", str(shelf), "lych-checkpoint doctor",
                      "copy-failed") from error


class Kept(Protocol):
    """One copy. ``uuid`` is nobody else's and stays with it through renames and exchanges."""

    @property
    def uuid(self) -> str:
        """Tells it from every other copy."""

    @property
    def read_only(self) -> bool:
        """Whether no server can start on it."""


@dataclass(frozen=True, slots=True)
class Shelf(ABC):
    """Copies by name beside one PGDATA; ``pgdata`` has no symlinks in it."""

    pgdata: Path

    @property
    def path(self) -> Path:
        """Where the copies lie."""
        return self.pgdata.parent / f".lych-{self.pgdata.name}"

    def make(self) -> None:
        """Make the directory, PGDATA's owner's, mode 0700."""
        with kernel.directory(self.pgdata.parent) as parent:
            try:
                os.mkdir(self.path.name, 0o700, dir_fd=parent)
            except FileExistsError:
                return
            owner = Owner.of(self.pgdata)
            os.chown(self.path.name, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=False)

    @abstractmethod
    def live(self) -> Kept:
        """Return what is PGDATA now."""

    @abstractmethod
    def find(self, name: str) -> Kept | None:
        """Return the copy ``name``, or None if there is none."""

    @abstractmethod
    def generation(self, name: str) -> int:
        """Return a number that every change of the copy's content changes."""

    @abstractmethod
    def unfold(self, name: str, writable: str) -> Kept:
        """Copy ``name`` writable, without a running server's lock files and without others' slots."""

    @abstractmethod
    def close(self, name: str, *, read_only: bool) -> Kept:
        """Let no server start on ``name``, or let it; durable when it returns."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove the copy ``name``; gone already is gone."""

    def need_room(self, copied_bytes: int = 0) -> None:
        """Refuse where a copy would leave the server too little: it dies if its WAL finds no room.

        A backup begins a new segment and keeps those of the drain; what a copy shares takes room once it is written.

        Args:
            copied_bytes: what the copy itself takes.

        Raises:
            Refused: there is too little (code ``no-room``).
        """
        wanted = _ROOM_BYTES + copied_bytes
        if shutil.disk_usage(self.pgdata).free < wanted:
            raise Refused(f"less than {wanted >> 20} MB are free, and the server dies if its WAL finds no room",
                          str(self.pgdata), "make room", "no-room")

    def links(self) -> str:
        """Return what every tablespace that comes or goes changes, also one that has gone again."""
        with kernel.directory(self.pgdata) as top:
            found = os.stat("pg_tblspc", dir_fd=top, follow_symlinks=False)
        return f"{found.st_ino} {found.st_mtime_ns}"

    def swap(self, name: str) -> None:
        """Exchange PGDATA and ``name``; durable when it returns."""
        with kernel.directory(self.pgdata.parent) as parent, self.opened() as shelf:
            kernel.exchange((parent, self.pgdata.name), (shelf, name))
            os.fsync(parent)
            os.fsync(shelf)
            kernel.sync(shelf)

    def move(self, name: str, to: str) -> None:
        """Rename a copy; durable when it returns."""
        with self.opened() as shelf:
            os.rename(name, to, src_dir_fd=shelf, dst_dir_fd=shelf)
            kernel.sync(shelf)

    def sync(self) -> None:
        """Bring the file system onto the disk."""
        with kernel.directory(self.pgdata) as descriptor:
            kernel.sync(descriptor)

    def note(self, name: str, facts: dict[str, Any]) -> None:
        """Remember ``facts`` under ``name``; durable when it returns."""
        with self.opened() as shelf:
            descriptor = os.open(f"{name}.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600,
                                 dir_fd=shelf)
            with os.fdopen(descriptor, "w") as file:
                if os.geteuid() == 0:
                    owned = os.fstat(shelf)
                    os.fchown(descriptor, owned.st_uid, owned.st_gid)
                json.dump(facts, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{name}.json.new", f"{name}.json", src_dir_fd=shelf, dst_dir_fd=shelf)
            os.fsync(shelf)

    def noted(self, name: str) -> dict[str, Any] | None:
        """Return what was noted under ``name``, or None."""
        try:
            with self.opened() as shelf:
                descriptor = os.open(f"{name}.json", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=shelf)
                with os.fdopen(descriptor) as file:
                    return dict(json.load(file))
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """Drop what was noted under ``name``."""
        try:
            with self.opened() as shelf:
                os.unlink(f"{name}.json", dir_fd=shelf)
        except FileNotFoundError:
            return

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do what only one may do here at a time, whoever else is at it; the kernel lets a dead one's turn end."""
        with self.opened() as shelf:
            fcntl.flock(shelf, fcntl.LOCK_EX)
            yield

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yield a descriptor of the shelf, which only PGDATA's owner and root may write."""
        with kernel.directory(self.pgdata.parent) as parent, \
                kernel.directory(self.path.name, inside=parent) as shelf:
            stat = os.fstat(shelf)
            if stat.st_mode & 0o077 or stat.st_uid not in (0, os.geteuid(), Owner.of(self.pgdata).uid):
                raise Refused("others may write here", str(self.path), f"chmod 0700 {self.path}", "open-shelf")
            yield shelf


def is_outsiders(slot: str) -> bool:
    """Whether a replication slot is not ours: what reads from it has gone on, and must find that the slot went."""
    return not slot.startswith("lych_")


def evidence_of(shelf: Shelf, name: str) -> Evidence:
    """Return what tells the copy ``name``, as it is now, from every other and from itself if it were changed.

    Raises:
        Refused: it is gone.
    """
    found = shelf.find(name)
    if found is None:
        raise Refused("the copy is gone", str(shelf.path / name), "create again")
    return {"pgdata": str(shelf.pgdata), "snapshot": name, "uuid": found.uuid, "generation": shelf.generation(name)}
