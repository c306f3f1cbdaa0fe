"""Several hosts, each with the body on its own disk: asked before a restore, and caught at boot if they slept.

A restore changes the disk of the host it runs on. The workers of another one leave with 75 when it is done, and the
gate there checks the body out. So before anything is displaced, each host says that it can.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lych_checkpoint import body, eras
from lych_checkpoint.errors import CheckpointError, FreezeError, Refused
from lych_checkpoint.lease import following, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.process import Identity
from lych_checkpoint.rebuild import Host
from lych_checkpoint.records import canonical, digest
from lych_checkpoint.vault import Vault

logger = logging.getLogger(__name__)

#: The gate's word for a body that a restore displaced while this host was away.
SLEPT = "gate-slept"
_POLL_S = 0.05


def ask(store: Store, lock: BodyLock, ticket: str, patience_s: float) -> None:
    """Return when a worker on every other host has said that all commits of ``lock`` are at hand there.

    Raises:
        Refused: a host lacks one (code ``host-lacks``).
        FreezeError: a host did not answer within ``patience_s`` (code ``no-ack``).
    """
    mine = Identity.mine().host
    others = {entry.identity.host: entry.name for entry in roster.entries(store).values()}
    others.pop(mine, None)
    if not others:
        return
    following.ask(store, ticket, lock.checkpoint, {pin.path: pin.captured or pin.commit for pin in lock.repos})
    try:
        found = _wait(store, others, patience_s)
    finally:
        following.take_back(store)
    for host, lacking in sorted(found.items()):
        if lacking:
            raise Refused(
                f"this host has neither the commit {lock.commits[lacking[0]][:12]} of {lacking[0]} nor the "
                f"checkpoint's bundles ({len(lacking)} in all)", host,
                "mount the vault there, or fetch the commits", "host-lacks")


def _wait(store: Store, others: Mapping[str, str], patience_s: float) -> dict[str, list[str]]:
    end_s = time.monotonic() + patience_s
    while True:
        found = following.answers(store)
        silent = sorted(set(others) - set(found))
        if not silent:
            return found
        if time.monotonic() > end_s:
            raise FreezeError(f"{others[silent[0]]} did not say within {patience_s:g} s whether its host can follow",
                              silent[0], "see whether that worker lives, or `lych-checkpoint status`", "no-ack")
        time.sleep(_POLL_S)


def answer(store: Store, root: Path, vault: Vault) -> None:
    """Answer an open question of a restore elsewhere; with none open it costs one look into Redis."""
    host = Identity.mine().host
    question = following.asked(store, host)
    if question is not None:
        lacking = body.lacking(question.commits, root, vault.path(question.checkpoint) / "body")
        following.answer(store, question, host, lacking)


def displaced(lock: BodyLock) -> str:
    """Return the digest under which the lineage keeps what a restore displaced."""
    return digest(canonical(lock.commits))


def has_slept(
    root: Path, lineage: Iterable[Mapping[str, Any]], commits: Mapping[str, str], signature: str,
) -> bool:
    """Say whether this checkout is of a future that a restore took back, and has not followed that restore.

    Just what it displaced, or what the soul had been given in between: a host that was away, or whose turn in a
    rolling deployment was still to come. Their commits are ahead of what came back, and would look like an upgrade.

    Args:
        root: LYCH_ROOT.
        lineage: its records.
        commits: as checked out, by repository.
        signature: of the body as checked out; empty if it cannot be read.
    """
    records, seen, standing = list(lineage), Host(root).restored, digest(canonical(dict(commits)))
    if any(one.get("displaced") == standing and int(one["generation"]) > seen for one in records):
        return True
    lost = [span for span in eras.gone(records) if span.stop > seen]
    era = max((span.stop for span in lost), default=0)
    lived = [int(one["generation"]) for one in records if one["signature"] == signature and one["kind"] != "restore"]
    # The same body may have been deployed anew since: then it is an upgrade that this host missed nothing of.
    return any(number in span for span in lost for number in lived) and not any(number > era for number in lived)


def follow(root: Path, generation: int) -> None:
    """Note that this checkout has followed the restore that made ``generation``; what it does next is its own."""
    host = Host(root)
    try:
        if generation > host.restored:
            host.note_restored(generation)
    except CheckpointError as error:
        # Only a redeployment of just what was displaced would be taken back by it.
        logger.warning("It cannot be noted that this host followed a restore: %s", error)
