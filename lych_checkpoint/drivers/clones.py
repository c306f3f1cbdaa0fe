"""Directories of cloned files on the shelf: each file shares its bytes with its source until either is written.

Where the file system cannot clone, the bytes are copied: whoever cannot wait for that asks `unclonable` first.
A clone has no snapshot's uuid, flag or generation. Its top directory's inode tells it from others, its mode without
write permission keeps servers from starting on it, and the kernel's change times, which nobody can set, show changes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint import progress
from lych_checkpoint.drivers import kernel, trees
from lych_checkpoint.drivers.base import Unfit
from lych_checkpoint.drivers.cluster import writable_beside
from lych_checkpoint.drivers.shelf import SLOTS, STALE, Shelf, is_outsiders
from lych_checkpoint.errors import Damage

_WRITE = stat.S_IWUSR | stat.S_IWGRP
#: What a server makes anew, and what belongs to a moment that a backup does not have. As pg_basebackup leaves out.
_FILES_NOT_LIVE = {*STALE, "backup_label", "backup_label.old", "tablespace_map", "backup_manifest",
                   "current_logfiles.tmp", "postgresql.auto.conf.tmp"}
_EMPTIED = {"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans",
            "pg_wal"}
_SCRATCH = re.compile(r"pgsql_tmp|pg_internal\.init")
#: Cloned last: it must not be newer than what lies beside it.
_LAST = "global/pg_control"


@dataclass(frozen=True, slots=True)
class Tree:
    """One directory: identity by inode, and whether it is closed."""

    uuid: str
    read_only: bool


class Clones(Shelf):
    """Clones of a PGDATA that is an ordinary directory."""

    __slots__ = ()

    def live(self) -> Tree:
        """Return the directory that is PGDATA now."""
        with kernel.directory(self.pgdata) as descriptor:
            return _tree(descriptor)

    def find(self, name: str) -> Tree | None:
        """Return the directory ``name``, or None if there is none."""
        try:
            with self.opened() as shelf, kernel.directory(name, inside=shelf) as descriptor:
                return _tree(descriptor)
        except FileNotFoundError:
            return None

    def generation(self, name: str) -> int:
        """Return a digest of every file's name, inode, size, owner, mode and times."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as top:
            return trees.number([trees.look(path, found) for path, found in trees.walk(top)])

    def take(self, name: str) -> None:
        """Clone a live PGDATA, in backup mode, as ``name``: each file at a time of its own, and no WAL."""
        with self.opened() as shelf, kernel.directory(self.pgdata) as live:
            trees.copy(live, shelf, name, _live, _LAST)

    def unfold(self, name: str, writable: str) -> Tree:
        """Clone ``name`` writable, without a running server's lock files and without others' slots."""
        with self.opened() as shelf:
            with (
                kernel.directory(name, inside=shelf) as source,
                progress.told("the copy", lambda: trees.held_bytes(writable, shelf), trees.size_bytes(source)),
            ):
                trees.copy(source, shelf, writable, _comes_back, _LAST)
            with kernel.directory(writable, inside=shelf) as made:
                os.fchmod(made, stat.S_IMODE(os.fstat(made).st_mode) | stat.S_IWUSR)
                kernel.sync(made)
                return _tree(made)

    def write(self, name: str, file: str, content: bytes) -> None:
        """Write one more file of PGDATA's owner into the top of the copy ``name``."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as top, \
                trees.created(file, top, os.fstat(top), 0o600) as made:
            os.write(made, content)

    def take_wal(self, name: str, segments: list[str], segment_bytes: int, cut_at: int) -> None:
        """Clone WAL segments of the live server into the copy ``name``.

        Args:
            name: of the copy.
            segments: file names in order.
            segment_bytes: the server's wal_segment_size.
            cut_at: what of the last segment is kept; the rest becomes zeros, where a recovery ends.

        Raises:
            Damage: a segment is missing or short.
        """
        with self.opened() as shelf, kernel.below(shelf, name, "pg_wal") as target:
            for segment in segments:
                self.take_segment(segment, target, segment_bytes)
            cut(segments[-1], target, cut_at)

    def take_segment(self, segment: str, target: int, segment_bytes: int, to: str = "") -> None:
        """Duplicate a WAL segment of the live server into a directory.

        Raises:
            Damage: it is missing or short.
        """
        try:
            with kernel.directory(self.pgdata) as live, kernel.directory("pg_wal", inside=live) as source:
                found_bytes = trees.duplicate(segment, source, target, to)
        except FileNotFoundError as error:
            raise Damage(f"the WAL segment {segment} is gone", str(self.pgdata), "create again") from error
        if found_bytes != segment_bytes:
            raise Damage(f"the WAL segment {segment} is short", str(self.pgdata), "create again")

    def close(self, name: str, *, read_only: bool) -> Tree:
        """Take or give the permission to write into ``name``'s top; durable when it returns."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as descriptor:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.fchmod(descriptor, mode & ~_WRITE if read_only else mode | stat.S_IWUSR)
            kernel.sync(descriptor)
            return _tree(descriptor)

    def remove(self, name: str) -> None:
        """Remove the directory ``name``; gone already is gone."""
        if self.find(name) is not None:
            self.close(name, read_only=False)
            with self.opened() as shelf:
                shutil.rmtree(name, dir_fd=shelf)


def no_place(pgdata: Path) -> Unfit | None:
    """Return None, or why no copy beside ``pgdata`` can be exchanged with it."""
    if kernel.is_mount_point(pgdata):
        return Unfit(f"{pgdata} is a mount point, which cannot be exchanged",
                     f"stop the server, and move PGDATA one directory below it, to {pgdata / 'data'}")
    return writable_beside(pgdata)


def unclonable(pgdata: Path) -> Unfit | None:
    """Return None, or why files of ``pgdata`` cannot be cloned to beside it. Raises OSError."""
    with kernel.directory(pgdata) as top, kernel.directory(pgdata.parent) as parent:
        kernel.identity(top)
        source = os.open("PG_VERSION", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=top)
        try:
            made = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=parent)
            try:
                kernel.clone(source, made)
            finally:
                os.close(made)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return Unfit(f"{pgdata.parent} is not on the same file system as {pgdata}",
                             f"stop the server, and move PGDATA one directory below, to {pgdata / 'data'}")
            if error.errno == errno.EINVAL:
                return Unfit(f"{pgdata} and {pgdata.parent} differ in +C, between which nothing can be cloned",
                             f"chattr {'+' if kernel.is_no_cow(top) else '-'}C {pgdata.parent}")
            return Unfit(f"{pgdata}: this file system cannot clone files ({error.strerror})",
                         "use XFS made with -m reflink=1; or LYCH_DRIVER=pitr or dump")
        finally:
            os.close(source)
    return None


def _tree(descriptor: int) -> Tree:
    return Tree(kernel.identity(descriptor), not os.fstat(descriptor).st_mode & stat.S_IWUSR)


def cut(segment: str, directory: int, at: int) -> None:
    """Make zeros of a segment's end, where a recovery ends."""
    opened = os.open(segment, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        size = os.fstat(opened).st_size
        os.ftruncate(opened, at)
        os.ftruncate(opened, size)
    finally:
        os.close(opened)


def _comes_back(path: str) -> bool:
    head, _, rest = path.partition("/")
    return path not in STALE and not (head == SLOTS and rest and "/" not in rest and is_outsiders(rest))


def _live(path: str) -> bool:
    head, _, rest = path.partition("/")
    return not (path in _FILES_NOT_LIVE or (rest and head in _EMPTIED) or _SCRATCH.search(path))
