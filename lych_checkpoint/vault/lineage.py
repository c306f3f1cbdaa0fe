"""The lineage: every generation the soul ever had, in a file that only grows.

One record a line. A line without its end is the torn rest of a crash: what it was to say did not happen. Readers pass
over it, the next append removes it. Any other line that cannot be read is damage.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import Damage
from lych_checkpoint.records import RELEASE, VERSION, canonical, load_record
from lych_checkpoint.vault.files import flush_directory, writing

logger = logging.getLogger(__name__)


def append(path: Path, kind: str, generation: int, signature: str, **more: str | int) -> None:
    """Append one line: whole and durable, or not at all.

    Raises:
        Refused, Away: as `writing`; the file says what it said before.
    """
    record = {"version": VERSION, "release": RELEASE, "kind": kind, "generation": generation, "signature": signature,
              "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), **more}
    line = canonical(record) + b"\n"
    # Gates of several workers append at once: without the lock one could take another's half line for a torn one.
    with writing(path), _locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
        size = _whole_bytes(descriptor, path)
        if size < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, size)
        try:
            _write(descriptor, line)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        if not size:
            flush_directory(path.parent)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Give every whole record, oldest first.

    Raises:
        Damage: a line cannot be read, or another release wrote it.
        Refused, Away: the file cannot be read.
    """
    if not path.exists():
        return
    with writing(path), _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
        data = _read(descriptor, _whole_bytes(descriptor, path))
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        where = f"{path}:{number}"
        try:
            record = load_record(line, where)
        except Damage as error:
            if error.code == "unknown-version":
                raise
            raise _broken(where) from error
        if type(record.get("generation")) is not int or not {"kind", "signature"} <= set(record):
            raise _broken(where)
        yield record


def last(path: Path) -> dict[str, Any] | None:
    """Return the record with the highest generation, the newest of those, or None."""
    return max(reversed(list(records(path))), key=lambda record: int(record["generation"]), default=None)


def _broken(where: str) -> Damage:
    return Damage("this line is no record of a generation", where, "restore the file from a copy", "lineage-broken")


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _whole_bytes(descriptor: int, path: Path) -> int:
    """Return how many bytes belong to lines that have their end; a torn rest is named in the log."""
    size = os.fstat(descriptor).st_size
    whole = _read(descriptor, size).rfind(b"\n") + 1
    if whole < size:
        logger.warning("%s: %d bytes at its end were torn by a crash and do not count", path, size - whole,
                       extra={"event": "lineage.torn"})
    return whole


def _write(descriptor: int, line: bytes) -> None:
    if os.write(descriptor, line) < len(line):  # a full disk takes a part of it and says nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := os.pread(descriptor, size - len(data), len(data))):
        data += part
    return data
