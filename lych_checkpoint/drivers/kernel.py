"""Directories and files through the kernel, by calls that Python has no name for.

Directories are given by descriptor and names are single components, so that no symlink that the data's owner plants
leads root astray. All calls raise OSError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_FICLONE = 0x40049409
_GETVERSION = 0x80087601
_FIEMAP = 0xC020660B
_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_NO_COW = 0x00800000
#: start, length, flags, mapped extents (answer), extents that there is room for, reserved.
_FIEMAP_ARGS = struct.Struct("=QQIIII")
_RENAME_EXCHANGE = 2
_COPY_BYTES = 64 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def directory(path: str | Path, *, inside: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a directory; a symlink in its last component is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def below(top: int, *names: str) -> Iterator[int]:
    """Yield a descriptor of the directory that these names lead to, one below the other; symlinks are refused."""
    with ExitStack() as stack:
        for name in names:
            top = stack.enter_context(directory(name, inside=top))
        yield top


def exchange(first: tuple[int, str], second: tuple[int, str]) -> None:
    """Exchange two directory entries atomically; each is (directory, name)."""
    if _LIBC.renameat2(first[0], os.fsencode(first[1]), second[0], os.fsencode(second[1]), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), second[1])


def sync(descriptor: int) -> None:
    """Bring all of the descriptor's file system onto the disk."""
    if _LIBC.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def clone(source: int, target: int) -> None:
    """Let the file ``target`` share the bytes of the file ``source``; writes to either part them again."""
    fcntl.ioctl(target, _FICLONE, source)


def duplicate(source: int, target: int) -> None:
    """Clone, or where the file system cannot, copy byte by byte."""
    try:
        clone(source, target)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
            raise
        while os.copy_file_range(source, target, _COPY_BYTES):
            pass


def identity(descriptor: int) -> str:
    """Return what no other file of this file system is ever called: inode and its generation. Renames keep it."""
    answer = bytearray(8)  # of which the kernel writes four bytes, whatever the call's number says
    fcntl.ioctl(descriptor, _GETVERSION, answer)
    return f"{os.fstat(descriptor).st_ino}.{struct.unpack_from('=I', answer)[0]}"


def extents(descriptor: int) -> int:
    """Return in how many pieces the file lies on the disk."""
    answer = bytearray(_FIEMAP_ARGS.pack(0, 2**64 - 1, 0, 0, 0, 0))
    fcntl.ioctl(descriptor, _FIEMAP, answer)
    return int(_FIEMAP_ARGS.unpack(answer)[3])


def is_no_cow(descriptor: int) -> bool:
    """Whether new files here are written in place (`chattr +C`)."""
    return bool(_flags(descriptor) & _NO_COW)


def set_no_cow(descriptor: int) -> None:
    """Let new files here be written in place (`chattr +C`)."""
    fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("=Q", _flags(descriptor) | _NO_COW))


def nested(top: Path) -> list[Path]:
    """Return what below ``top`` a copy of its file system would lack: subvolumes, and all that is mounted there.

    Also what is mounted from the same file system, and a single file: those have no device of their own.
    """
    device, above = top.stat().st_dev, os.fsencode(top) + b"/"
    found = {Path(os.fsdecode(point)) for point in _mount_points() if point.startswith(above)}
    for root, names, _ in os.walk(top):
        for name in list(names):
            path = Path(root) / name
            with suppress(FileNotFoundError):
                if path.stat(follow_symlinks=False).st_dev != device:
                    found.add(path)
                    names.remove(name)
    return sorted(found)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted right here. Device numbers prove nothing: every subvolume has its own."""
    return os.fsencode(path) in _mount_points()


def _flags(descriptor: int) -> int:
    answer = bytearray(8)  # the kernel writes four bytes, whatever the call's number says
    fcntl.ioctl(descriptor, _GETFLAGS, answer)
    return int(struct.unpack("=Q", answer)[0])


def _mount_points() -> set[bytes]:
    lines = Path("/proc/self/mountinfo").read_bytes().rstrip(b"\n").split(b"\n")
    # Blanks, ends of lines and backslashes in a name are written as three octal digits.
    return {re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4]) for line in lines}
