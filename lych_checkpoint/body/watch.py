"""What inotify saw in the directories of the body since they were armed.

Armed before a repository is looked at, so that no change falls between. It does not see stores into a mapped file,
only the close of a descriptor that could write, nor a write through a hard link in a directory that is not watched.
Where it cannot see all, as on a network's file system, it says so and every re-check scans again.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import re
import struct
import termios
from collections.abc import Iterable, Mapping
from pathlib import Path

from lych_checkpoint.repository.lens import Lens
from lych_checkpoint.repository.worktree import Folders, folders_above, ignored, subfolders

_EVENT = struct.Struct("iIII")
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _IS_DIRECTORY = 0x400, 0x800, 0x4000, 0x40000000
_ONLY_DIRECTORY, _DO_NOT_FOLLOW = 0x1000000, 0x2000000
_MASK = (_MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
         | _ONLY_DIRECTORY | _DO_NOT_FOLLOW)
_READ_BYTES = 1 << 16
_MOUNTS, _OCTAL = Path("/proc/self/mountinfo"), re.compile(rb"\\([0-7]{3})")
#: File systems that only this kernel writes, so that inotify sees it. On NFS, CIFS, 9p and FUSE others write
#: unseen. An overlay's lower layers are nobody's to write while it is mounted.
_LOCAL = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "overlay", "ramfs",
                    "reiserfs", "tmpfs", "xfs", "zfs"))


class Watch:
    """Watches directories; used by the process that opened it."""

    def __init__(self, descriptor: int, library: ctypes.CDLL, mounted: Mapping[bytes, str]) -> None:
        self._descriptor, self._library, self._mounted = descriptor, library, mounted
        self._owners: dict[int, tuple[int, bytes]] = {}
        self._left_out: dict[int, Lens] = {}
        self._restless: set[int] = set()
        #: Whether everything is seen; once false it stays so.
        self.complete = True

    @classmethod
    def open(cls) -> Watch | None:
        """Open a watch, or return None where the system gives none."""
        library, mounted = ctypes.CDLL(None, use_errno=True), mounts(_MOUNTS.read_bytes())
        try:
            descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:
            return None
        return cls(descriptor, library, mounted) if descriptor >= 0 else None

    def close(self) -> None:
        """End the watch; after that nothing is seen."""
        self.complete = False
        os.close(self._descriptor)

    def arm(self, number: int, name: str, tracked: Iterable[bytes], lens: Lens) -> None:
        """Watch all directories of repository ``number`` in which a file that counts could appear or change.

        Each is watched before it is read: what is made in it after that raises an event, what was made before is
        found. Ignored directories are left out, a status says nothing of them either.

        Raises:
            Refused: git failed, or would never end to read the working tree of ``name``, see `worktree.subfolders`.
        """
        directory = lens.work_tree
        root = os.fsencode(directory)
        self._left_out[number] = lens
        if not kinds(root, self._mounted) <= _LOCAL:
            self.complete = False
        folders = folders_above(tracked) | {b""}
        for folder in folders:
            self._add(number, root, folder)
        real = Folders(directory)
        unknown = [path for folder in folders if real.is_real(folder)
                   for path in subfolders(root, folder, name) if path not in folders]
        seen = [path for path in unknown if not lens.left_out(path)]
        hidden = ignored(lens, seen) if seen else set()
        waiting = [(path, path not in hidden and not lens.left_out(path)) for path in unknown]
        while waiting:
            folder, counts = waiting.pop()
            if counts:
                self._add(number, root, folder)
            waiting += [(path, counts and not lens.left_out(path)) for path in subfolders(root, folder, name)]

    def _add(self, number: int, root: bytes, folder: bytes) -> None:
        handle = self._library.inotify_add_watch(self._descriptor, os.path.join(root, folder), _MASK)
        if handle >= 0:
            self._owners[handle] = (number, folder)
        elif os.path.lexists(os.path.join(root, folder)):
            self.complete = False  # the limit of watches, or a file system without them

    def touched(self) -> set[int]:
        """Return the numbers of the repositories in which something that counts happened since the last call."""
        found = set(self._restless)
        try:
            while self.complete and self._waits():
                found |= self._read(os.read(self._descriptor, _READ_BYTES))
        except OSError:
            self.complete = False
        return found

    def _waits(self) -> bool:
        """Return whether there is something to read. Under eventlet a read that finds nothing would wait for ever."""
        count = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, count)
        return count[0] > 0

    def _read(self, data: bytes) -> set[int]:
        found, offset = set(), 0
        while offset < len(data):
            handle, mask, _, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size:offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            if mask & _OVERFLOW:
                self.complete = False
            if handle not in self._owners:
                continue
            number, folder = self._owners[handle]
            path = folder + b"/" + name if folder and name else folder or name
            if path == b".git" or self._left_out[number].left_out(path):
                continue
            found.add(number)
            if mask & _IS_DIRECTORY and mask & (_CREATE | _MOVED_TO):
                self._restless.add(number)  # nothing watches the new directory: look at all of it from now on
        return found


def mounts(said: bytes) -> dict[bytes, str]:
    """Return each file system by its place, from ``/proc/self/mountinfo``; of two on one the later lies above."""
    found: dict[bytes, str] = {}
    for line in said.splitlines():
        before, _, after = line.partition(b" - ")
        place = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
        found[place] = after.split(b" ")[0].decode(errors="replace")
    return found


def kinds(directory: bytes, mounted: Mapping[bytes, str]) -> set[str]:
    """Return the types of the file systems that a directory lies on and that are mounted below it.

    Args:
        directory: an absolute path.
        mounted: from `mounts`.
    """
    directory = os.path.realpath(directory)
    above = [place for place in mounted if _is_in(directory, place)]
    below = [place for place in mounted if _is_in(place, directory)]
    return {mounted[place] for place in [max(above, key=len, default=b""), *below] if place in mounted} or {"unknown"}


def _is_in(path: bytes, place: bytes) -> bool:
    return path == place or path.startswith(place.rstrip(b"/") + b"/")
