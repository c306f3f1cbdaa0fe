"""Trees of files, walked and duplicated through descriptors: bytes shared where the file system can, else copied."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from lych_checkpoint.drivers import kernel


def copy(source: int, target: int, name: str, wanted: Callable[[str], bool], last: str) -> None:
    """Duplicate the tree ``source`` as ``name``, every entry with its owner and mode; sockets and such are left out.

    What vanishes meanwhile is left out too: a server in backup mode writes into its WAL that it went.

    Args:
        source: descriptor of its top.
        target: descriptor of the directory in which it is made.
        name: of the duplicate.
        wanted: by path below the top; what a directory holds that is not wanted is not wanted either.
        last: path of the one file that must not be newer than what lies beside it.
    """
    with made(name, target, os.fstat(source)) as top:
        _fill(source, top, "", lambda path: path != last and wanted(path))
        *heads, file = last.split("/")
        with kernel.below(source, *heads) as old, kernel.below(top, *heads) as new:
            duplicate(file, old, new)


def walk(top: int, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of every entry below ``top``, in a fixed order; what vanishes meanwhile is left out."""
    with os.scandir(top) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=top, follow_symlinks=False)
            yield prefix + name, found
            if stat.S_ISDIR(found.st_mode):
                with kernel.directory(name, inside=top) as below:
                    yield from walk(below, f"{prefix}{name}/")


def size_bytes(top: int) -> int:
    """Return what the tree's files take on the disk."""
    return sum(found.st_blocks * 512 for _, found in walk(top))


def held_bytes(name: str, parent: int) -> int:
    """Return what the files of the tree ``name`` take on the disk."""
    with kernel.directory(name, inside=parent) as top:
        return size_bytes(top)


def look(path: str, found: os.stat_result) -> bytes:
    """Return a line that every change of that entry changes: nobody can set a change time."""
    return (f"{path}\0{found.st_ino} {found.st_size} {found.st_mode} {found.st_uid} {found.st_gid} "
            f"{found.st_mtime_ns} {found.st_ctime_ns}\n").encode(errors="surrogateescape")


def number(lines: list[bytes]) -> int:
    """Return a number that every change of these lines changes."""
    return int.from_bytes(hashlib.sha256(b"".join(lines)).digest()[:6])


@contextmanager
def made(name: str, parent: int, like: os.stat_result) -> Iterator[int]:
    """Make a directory with the owner and mode of another, which we can write until its mode is changed."""
    os.mkdir(name, 0o700, dir_fd=parent)
    with kernel.directory(name, inside=parent) as descriptor:
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(like.st_mode) | stat.S_IWUSR)
        yield descriptor


@contextmanager
def created(name: str, parent: int, like: os.stat_result, mode: int) -> Iterator[int]:
    """Make a file with the owner of another; one of that name is an error."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                         dir_fd=parent)
    try:
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fchmod(descriptor, mode)
        yield descriptor
    finally:
        os.close(descriptor)


def duplicate(name: str, source: int, target: int, to: str = "") -> int:
    """Duplicate one file, by default under the same name, with owner and mode. Returns its size in bytes."""
    with _opened(name, source) as opened:
        return _pour(opened, to or name, target)


def _pour(opened: int, name: str, target: int) -> int:
    found = os.fstat(opened)
    with created(name, target, found, stat.S_IMODE(found.st_mode)) as descriptor:
        kernel.duplicate(opened, descriptor)
        return os.fstat(descriptor).st_size


@contextmanager
def _opened(name: str, source: int) -> Iterator[int]:
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        yield opened
    finally:
        os.close(opened)


def _fill(source: int, target: int, prefix: str, wanted: Callable[[str], bool]) -> None:
    names: list[str] = []
    with suppress(FileNotFoundError), os.scandir(source) as entries:  # a directory that has vanished lists nothing
        names += [entry.name for entry in entries if wanted(prefix + entry.name)]
    for name in names:
        with ExitStack() as stack:
            leads, opened = "", -1
            # Only what the source lacks is left out: a copy whose own place vanished is none.
            try:
                found = os.stat(name, dir_fd=source, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    opened = stack.enter_context(kernel.directory(name, inside=source))
                elif stat.S_ISREG(found.st_mode):
                    opened = stack.enter_context(_opened(name, source))
                elif stat.S_ISLNK(found.st_mode):
                    leads = os.readlink(name, dir_fd=source)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                with made(name, target, found) as new:
                    _fill(opened, new, f"{prefix}{name}/", wanted)
            elif stat.S_ISREG(found.st_mode):
                _pour(opened, name, target)
            elif leads:
                os.symlink(leads, name, dir_fd=target)
