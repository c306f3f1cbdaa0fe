"""One byte of memory that a worker shares with its pool's children: 1 while its barrier is closed.

It belongs to the process, not to the app: a process runs one worker, and `safepoint` must be able to read it without
asking Celery which task runs, which alone takes longer than all else that it does.
"""

from __future__ import annotations

import mmap
from typing import Protocol


class Flag(Protocol):
    """One byte that can be read and written, such as a shared memory map."""

    def __getitem__(self, index: int, /) -> int:
        """Read it."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Write it."""


class Frozen:
    """Holds the byte. Made with the import, it would be shared by all workers that one preloading parent forks."""

    __slots__ = ("byte",)

    def __init__(self) -> None:
        self.byte: Flag = bytearray(1)

    def share(self) -> Flag:
        """Return a new byte for the worker that starts here, before its pool forks."""
        self.byte = mmap.mmap(-1, 1)
        return self.byte


#: Of this process and the pool children forked from it.
FROZEN = Frozen()
