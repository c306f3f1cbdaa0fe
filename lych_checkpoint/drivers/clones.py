"""Directories of cloned files on the shelf: each file shares its bytes with its source until either is written.

A clone has no snapshot's uuid, flag or generation. Its top directory's inode tells it from others, its mode without
write permission keeps servers from starting on it, and the kernel's change times, which nobody can set, show changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from lych_checkpoint.drivers import kernel
from lych_checkpoint.drivers.shelf import STALE, Shelf
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
        seen = hashlib.sha256()
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as top:
            for path, found in _walk(top):
                seen.update(f"{path}\0{found.st_ino} {found.st_size} {found.st_mode} {found.st_uid} {found.st_gid} "
                            f"{found.st_mtime_ns} {found.st_ctime_ns}\n".encode(errors="surrogateescape"))
        return int.from_bytes(seen.digest()[:6])

    def take(self, name: str) -> None:
        """Clone a live PGDATA, in backup mode, as ``name``: each file at a time of its own, and no WAL."""
        with self.opened() as shelf, kernel.directory(self.pgdata) as live:
            _copy(live, shelf, name, _live)

    def unfold(self, name: str, writable: str) -> Tree:
        """Clone ``name`` writable, without the lock files that a running server left in it."""
        with self.opened() as shelf:
            with kernel.directory(name, inside=shelf) as source:
                _copy(source, shelf, writable, lambda path: path not in STALE)
            with kernel.directory(writable, inside=shelf) as made:
                os.fchmod(made, stat.S_IMODE(os.fstat(made).st_mode) | stat.S_IWUSR)
                kernel.sync(made)
                return _tree(made)

    def write(self, name: str, file: str, content: bytes) -> None:
        """Write one more file of PGDATA's owner into the top of the copy ``name``."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as top, \
                _created(file, top, os.fstat(top), 0o600) as made:
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
        with ExitStack() as stack:
            shelf = stack.enter_context(self.opened())
            live = stack.enter_context(kernel.directory(self.pgdata))
            source = stack.enter_context(kernel.directory("pg_wal", inside=live))
            top = stack.enter_context(kernel.directory(name, inside=shelf))
            target = stack.enter_context(kernel.directory("pg_wal", inside=top))
            for segment in segments:
                try:
                    _clone(segment, source, target, os.stat(segment, dir_fd=source, follow_symlinks=False))
                except FileNotFoundError as error:
                    raise Damage(f"the WAL segment {segment} is gone", str(self.pgdata), "create again") from error
                if os.stat(segment, dir_fd=target).st_size != segment_bytes:
                    raise Damage(f"the WAL segment {segment} is short", str(self.pgdata), "create again")
            last = os.open(segments[-1], os.O_WRONLY | os.O_NOFOLLOW, dir_fd=target)
            try:
                os.ftruncate(last, cut_at)
                os.ftruncate(last, segment_bytes)
            finally:
                os.close(last)

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


def _tree(descriptor: int) -> Tree:
    return Tree(kernel.identity(descriptor), not os.fstat(descriptor).st_mode & stat.S_IWUSR)


def _live(path: str) -> bool:
    head, _, rest = path.partition("/")
    return not (path in _FILES_NOT_LIVE or (rest and head in _EMPTIED) or _SCRATCH.search(path))


def _copy(source: int, shelf: int, name: str, wanted: Callable[[str], bool]) -> None:
    """Clone the tree ``source`` as ``name``, every entry with its owner and mode; sockets and the like are left out.

    What vanishes meanwhile is left out too: a server in backup mode writes into its WAL that it went.
    """
    with _made(name, shelf, os.fstat(source)) as top:
        _fill(source, top, "", lambda path: path != _LAST and wanted(path))
        head, _, last = _LAST.partition("/")
        with kernel.directory(head, inside=source) as old, kernel.directory(head, inside=top) as new:
            _clone(last, old, new, os.stat(last, dir_fd=old, follow_symlinks=False))


def _fill(source: int, target: int, prefix: str, wanted: Callable[[str], bool]) -> None:
    with os.scandir(source) as entries:
        names = [entry.name for entry in entries if wanted(prefix + entry.name)]
    for name in names:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with kernel.directory(name, inside=source) as old, _made(name, target, found) as new:
                    _fill(old, new, f"{prefix}{name}/", wanted)
            elif stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            elif stat.S_ISREG(found.st_mode):
                _clone(name, source, target, found)


def _walk(top: int, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of every entry below ``top``, in a fixed order."""
    with os.scandir(top) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        found = os.stat(name, dir_fd=top, follow_symlinks=False)
        yield prefix + name, found
        if stat.S_ISDIR(found.st_mode):
            with kernel.directory(name, inside=top) as below:
                yield from _walk(below, f"{prefix}{name}/")


@contextmanager
def _made(name: str, parent: int, like: os.stat_result) -> Iterator[int]:
    os.mkdir(name, 0o700, dir_fd=parent)
    with kernel.directory(name, inside=parent) as made:
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(made, like.st_uid, like.st_gid)
        os.fchmod(made, stat.S_IMODE(like.st_mode) | stat.S_IWUSR)
        yield made


@contextmanager
def _created(name: str, parent: int, like: os.stat_result, mode: int) -> Iterator[int]:
    made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(made, like.st_uid, like.st_gid)
        os.fchmod(made, mode)
        yield made
    finally:
        os.close(made)


def _clone(name: str, source: int, target: int, found: os.stat_result) -> None:
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        with _created(name, target, found, stat.S_IMODE(found.st_mode)) as made:
            kernel.clone(opened, made)
    finally:
        os.close(opened)
