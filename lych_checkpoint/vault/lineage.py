"""The lineage: every generation the soul ever had, in a file that only grows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import Damage
from lych_checkpoint.manifest import RELEASE, VERSION, canonical, check_version
from lych_checkpoint.vault.files import flush_directory, writing


def append(path: Path, kind: str, generation: int, signature: str, **more: str) -> None:
    """Append one line, whole and durable.

    A crash may have left a torn line behind; it is ended first, and readers pass over it.
    """
    record = {"version": VERSION, "release": RELEASE, "kind": kind, "generation": generation, "signature": signature,
              "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), **more}
    with writing(path):
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + canonical(record) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            flush_directory(path.parent)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Give every whole record, oldest first.

    Raises:
        Damage: a line that is not the torn rest of a crash cannot be read, or a newer release wrote it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if line.startswith(b'{"') and not line.endswith(b"}"):
                continue  # torn by a crash: whatever it was to say did not happen
            raise Damage(f"line {number} is not a record", str(path), "restore the file from a copy",
                         "lineage-broken") from error
        check_version(record, f"{path}:{number}")
        yield record


def last(path: Path) -> dict[str, Any] | None:
    """Return the record with the highest generation, the newest of those, or None."""
    return max(records(path), key=lambda record: int(record["generation"]), default=None)
