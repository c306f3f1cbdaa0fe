"""Btrfs through the kernel: no program to start in the window, no library to install. See `kernel` for the manner."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import uuid
from dataclasses import dataclass

from lych_checkpoint.drivers.kernel import directory

_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_SUBVOL_GETFLAGS = 0x80089419
_SUBVOL_SETFLAGS = 0x4008941A
_GET_SUBVOL_INFO = 0x81F8943C
_FS_INFO = 0x8400941F
_READ_ONLY = 1 << 1
_ARGS_V2 = struct.Struct("=qQQ32s4040s")
_ARGS = struct.Struct("=q4088s")
#: treeid, name, parent_id, dirid, generation, flags, uuid, parent_uuid, received_uuid, ctransid; then others.
_INFO = struct.Struct("=Q256sQQQQ16s16s16sQ")
_INFO_BYTES = 504
#: The inode number of every subvolume's top directory.
_TOP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Subvolume:
    """What the kernel says of a subvolume. ``number`` is its id on that file system.

    ``generation`` is the transaction that last changed an inode in it (the kernel's ctransid). What the kernel calls
    generation moves as well when the subvolume is only snapshotted, so a restore would seem to damage its source.
    """

    number: int
    uuid: str
    parent_uuid: str
    generation: int
    read_only: bool


def is_subvolume(descriptor: int) -> bool:
    """Whether the directory is the top of a subvolume."""
    try:
        return os.fstat(descriptor).st_ino == _TOP and bool(file_system(descriptor))
    except OSError:
        return False


def file_system(descriptor: int) -> str:
    """Return the uuid of the Btrfs that the descriptor lies on; OSError if it is none."""
    answer = bytearray(1024)
    fcntl.ioctl(descriptor, _FS_INFO, answer)
    return uuid.UUID(bytes=bytes(answer[16:32])).hex


def info(descriptor: int) -> Subvolume:
    """Return what the kernel says of the subvolume."""
    answer = bytearray(_INFO_BYTES)
    fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, answer)
    found = _INFO.unpack_from(answer)
    return Subvolume(
        number=found[0], uuid=uuid.UUID(bytes=found[6]).hex, parent_uuid=uuid.UUID(bytes=found[7]).hex,
        generation=found[9], read_only=bool(_flags(descriptor) & _READ_ONLY),
    )


def create(inside: int, name: str) -> None:
    """Make an empty subvolume ``name`` in the directory ``inside``."""
    fcntl.ioctl(inside, _SUBVOL_CREATE, bytearray(_ARGS.pack(0, _name(name))))


def snapshot(source: int, inside: int, name: str, *, read_only: bool) -> None:
    """Snapshot the subvolume ``source`` as ``name`` in the directory ``inside``."""
    arguments = _ARGS_V2.pack(source, 0, _READ_ONLY if read_only else 0, b"", _name(name))
    fcntl.ioctl(inside, _SNAP_CREATE_V2, bytearray(arguments))  # Python takes more than 1024 bytes only mutable


def set_read_only(descriptor: int, *, read_only: bool) -> None:
    """Set or clear the subvolume's read-only flag."""
    flags = _flags(descriptor)
    wanted = flags | _READ_ONLY if read_only else flags & ~_READ_ONLY
    fcntl.ioctl(descriptor, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def destroy(inside: int, name: str) -> None:
    """Remove the subvolume ``name``; gone already is gone. Space comes back in the background."""
    try:
        fcntl.ioctl(inside, _SNAP_DESTROY, bytearray(_ARGS.pack(0, _name(name))))
    except FileNotFoundError:
        return
    except PermissionError:
        # An ordinary user may not, unless mounted with user_subvol_rm_allowed; emptying a writable one he may.
        with directory(name, inside=inside) as descriptor:
            set_read_only(descriptor, read_only=False)
        shutil.rmtree(name, dir_fd=inside)


def _flags(descriptor: int) -> int:
    answer = bytearray(8)
    fcntl.ioctl(descriptor, _SUBVOL_GETFLAGS, answer)
    return int(struct.unpack("=Q", answer)[0])


def _name(name: str) -> bytes:
    encoded = os.fsencode(name)
    if not encoded or b"/" in encoded or encoded in (b".", b".."):
        raise ValueError(f"{name!r} is no single name")
    return encoded
