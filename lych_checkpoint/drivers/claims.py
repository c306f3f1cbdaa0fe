"""Marks beside copies that are being made: by which driver, and for whom. Dropped when the checkpoint is sealed.

A mark is on the disk before its copy is begun, and locked by the process that makes it. The kernel drops the lock
when that process is dead, however it died: a mark that nobody holds says that the copy beside it may be nobody's.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lych_checkpoint.drivers.shelf import Shelf

_SUFFIX = ".making"


class Claim:
    """One mark, held: nobody takes its copy away until this ends. What fails to end leaves the mark to a sweep."""

    def __init__(self, shelf: Shelf, name: str, descriptor: int) -> None:
        self._shelf, self._name = shelf, name
        self._descriptor: int | None = descriptor

    def end(self, *, keep: bool) -> None:
        """Take the mark away; with ``keep`` the copy stays for good, else it goes first. Ended already is done."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            if not keep:
                self._shelf.remove(self._name)
            with self._shelf.opened() as directory, suppress(FileNotFoundError):
                os.unlink(self._name + _SUFFIX, dir_fd=directory)
        finally:
            os.close(descriptor)


def claim(shelf: Shelf, name: str, driver: str, owner: str) -> Claim:
    """Mark the copy ``name`` before it is begun; durable when it returns. ``owner`` is the vault's own name."""
    with shelf.opened() as directory:
        for other in _names(directory):
            with _held(shelf, other) as said:
                if said == {}:  # its maker died before it wrote, and so before there was a copy
                    os.unlink(other + _SUFFIX, dir_fd=directory)
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name + _SUFFIX, flags, 0o600, dir_fd=directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not os.fstat(descriptor).st_nlink:  # somebody swept it before it was locked
                    os.close(descriptor)
                    continue
                owned = os.fstat(directory)
                if os.geteuid() == 0:
                    os.fchown(descriptor, owned.st_uid, owned.st_gid)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"driver": driver, "owner": owner}).encode(), 0)
                os.fsync(descriptor)
                os.fsync(directory)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name + _SUFFIX, dir_fd=directory)
                os.close(descriptor)
                raise
            return Claim(shelf, name, descriptor)


def begun(shelf: Shelf, owner: str) -> dict[str, str]:
    """Return the copies of ``owner`` whose makers have gone, by name, with their driver."""
    try:
        with shelf.opened() as directory:
            names = _names(directory)
    except FileNotFoundError:
        return {}
    found = {}
    for name in names:
        with _held(shelf, name) as said:
            if said is not None and said.get("owner") == owner:
                found[name] = str(said["driver"])
    return found


def take_back(shelf: Shelf, name: str, driver: str, owner: str, remove: Callable[[], None] | None) -> None:
    """Take away the mark of a copy whose maker has gone, after ``remove`` took away the copy.

    Nothing is done if another driver or for another owner made it, or is still at it.
    """
    with _held(shelf, name) as said:
        if said != {"driver": driver, "owner": owner}:
            return
        if remove is not None:
            remove()
        with shelf.opened() as directory:
            os.unlink(name + _SUFFIX, dir_fd=directory)


def _names(directory: int) -> list[str]:
    return sorted(name.removesuffix(_SUFFIX) for name in os.listdir(directory) if name.endswith(_SUFFIX))


@contextmanager
def _held(shelf: Shelf, name: str) -> Iterator[dict[str, str] | None]:
    """Lock a mark and give what it says, nothing if its maker died before it wrote; None while somebody holds it."""
    try:
        with shelf.opened() as directory:
            descriptor = os.open(name + _SUFFIX, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        text = os.pread(descriptor, 65536, 0)
        try:
            said = dict(json.loads(text))
        except ValueError:
            said = {}
        yield said
    finally:
        os.close(descriptor)
