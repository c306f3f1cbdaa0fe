"""What a list of checkpoints shows, kept beside them so that a long list need not read every manifest again.

Only a cache: a row counts while its manifest is the same file, unchanged; it is rebuilt from the manifests whenever
it is missing, stale or damaged, and nothing is restored or verified by it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import CheckpointError, Damage
from lych_checkpoint.manifest import Manifest
from lych_checkpoint.records import RELEASE, VERSION, digest
from lych_checkpoint.vault.files import write_atomic

logger = logging.getLogger(__name__)


def rows(
    cache: Path, checkpoints: Path, ids: Sequence[str], read: Callable[[str], Manifest]
) -> dict[str, dict[str, Any]]:
    """Return the JSON object of every checkpoint that can be read, by id, in the order of ``ids``.

    One that cannot be read is named in the log and left out; `verify` says what is wrong with it.
    """
    known = _load(cache)
    found: dict[str, list[Any]] = {}
    for one in ids:
        stamp = _stamp(f"{checkpoints}/{one}/manifest.json")
        kept = known.get(one)
        if kept is not None and stamp and kept[0] == stamp:
            found[one] = kept
            continue
        try:
            found[one] = [stamp, read(one).as_json()]
        except Damage as error:
            logger.warning("%s", error, extra={"event": "vault.damage", "checkpoint": one})
    if found != known:
        _keep(cache, found)
    return {one: kept[1] for one, kept in found.items()}


def _stamp(path: str) -> list[int]:
    """Return what changes when the file does; the change time cannot be set back by its owner."""
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _load(cache: Path) -> dict[str, list[Any]]:
    try:
        head, _, body = cache.read_bytes().partition(b"\n")
    except OSError:
        return {}
    known: dict[str, list[Any]] = json.loads(body) if head == _head(body) else {}
    return known


def _keep(cache: Path, found: dict[str, list[Any]]) -> None:
    body = json.dumps(found, separators=(",", ":")).encode()
    try:
        write_atomic(cache, _head(body) + b"\n" + body)
    except CheckpointError as error:
        logger.debug("The list is not kept: %s", error)


def _head(body: bytes) -> bytes:
    """Return the line that says by which release, and for which bytes, the rest was written."""
    return f"{VERSION} {RELEASE} {digest(body)}".encode()
