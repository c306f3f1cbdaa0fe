"""What inotify saw in the directories of the body since they were armed.

Armed before a repository is looked at, so that no change falls between. It does not see stores into a mapped file,
only the close of a descriptor that could write. Where it cannot see all, it says so and every re-check scans again.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

from lych_checkpoint.repository.lens import Lens
from lych_checkpoint.repository.worktree import others

_EVENT = struct.Struct("iIII")
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _IS_DIRECTORY = 0x400, 0x800, 0x4000, 0x40000000
_ONLY_DIRECTORY, _DO_NOT_FOLLOW = 0x1000000, 0x2000000
_MASK = (_MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
         | _ONLY_DIRECTORY | _DO_NOT_FOLLOW)
_READ_BYTES = 1 << 16


class Watch:
    """Watches directories; used by the process that opened it."""

    def __init__(self, descriptor: int, library: ctypes.CDLL) -> None:
        self._descriptor, self._library = descriptor, library
        self._owners: dict[int, tuple[int, bytes]] = {}
        self._left_out: dict[int, Lens] = {}
        self._restless: set[int] = set()
        self._arming = threading.Lock()
        #: Whether everything is seen; once false it stays so.
        self.complete = True

    @classmethod
    def open(cls) -> Watch | None:
        """Open a watch, or return None where the system gives none."""
        library = ctypes.CDLL(None, use_errno=True)
        try:
            descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:
            return None
        return cls(descriptor, library) if descriptor >= 0 else None

    def close(self) -> None:
        """End the watch; after that nothing is seen."""
        self.complete = False
        os.close(self._descriptor)

    def arm(self, number: int, directory: Path, tracked: Iterable[bytes], lens: Lens) -> None:
        """Watch all directories of repository ``number`` in which a file that counts could appear or change.

        Those of tracked files come first. Whatever is made in them after that raises an event, and what was made
        before is found by the walk for untracked ones that follows.
        """
        root = os.fsencode(directory)
        with self._arming:
            self._left_out[number] = lens
            folders = {b""}
            for path in tracked:
                folder = os.path.dirname(path)
                while folder not in folders:
                    folders.add(folder)
                    folder = os.path.dirname(folder)
            for folder in folders:
                self._add(number, root, folder)
            for path in others(lens, directories=True):
                if path.endswith(b"/"):
                    for folder, _, _ in os.walk(os.path.join(root, path.rstrip(b"/"))):
                        self._add(number, root, os.path.relpath(folder, root))

    def _add(self, number: int, root: bytes, folder: bytes) -> None:
        handle = self._library.inotify_add_watch(self._descriptor, os.path.join(root, folder), _MASK)
        if handle >= 0:
            self._owners[handle] = (number, folder)
        elif os.path.lexists(os.path.join(root, folder)):
            self.complete = False  # the limit of watches, or a file system without them

    def touched(self) -> set[int]:
        """Return the numbers of the repositories in which something that counts happened since the last call."""
        found = set(self._restless)
        while self.complete:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                self.complete = False
                break
            found |= self._read(data)
        return found

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
