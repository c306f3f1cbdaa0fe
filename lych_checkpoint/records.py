"""How a record is written and read: canonical JSON with a version. Values only, no I/O.

Every record (lock, manifest, seal, witness, lease, lineage, journal) carries a version. A reader refuses another one
by the release that wrote it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from lych_checkpoint.errors import Damage

#: Version of all records; they move together.
VERSION = 1
#: Version of every JSON document that users read.
SCHEMA = 1
#: The release that writes this version, named to whoever meets a newer record.
RELEASE = "0.1.0"


def canonical(value: object) -> bytes:
    """Encode ``value`` as canonical JSON: sorted keys, no spaces, UTF-8, no floats that are not numbers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_version(record: dict[str, Any], what: str) -> None:
    """Refuse a record of another version by the name of the release that wrote it.

    Raises:
        Damage: the version is missing or not ours.
    """
    version = record.get("version")
    if type(version) is not int or version != VERSION:  # True and 1.0 would be equal to 1
        writer = record.get("release", "another release")
        raise Damage(
            f"version {version!r} was written by {writer}; this is release {RELEASE}, which reads version {VERSION}",
            what, "install that release of lych_checkpoint", "unknown-version",
        )


def load_record(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object of our version.

    Raises:
        Damage: it is none.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damage(f"not JSON: {error}", what, "", "malformed") from error
    if not isinstance(record, dict):
        raise Damage("not a JSON object", what, "", "malformed")
    check_version(record, what)
    return record


def read_record(cls: type[Any], record: dict[str, Any], what: str) -> dict[str, Any]:
    """Return ``record`` if its names are exactly the fields of the dataclass ``cls``.

    Raises:
        Damage: a name is missing or unknown.
    """
    wanted = {one.name for one in fields(cls)}
    if wanted != set(record):
        odd = ", ".join(sorted(wanted ^ set(record)))
        raise Damage(f"these fields are missing or unknown: {odd}", what, "", "malformed")
    return record
