"""Restore a checkpoint: body and soul, both or neither, whatever dies on the way.

Everything heavy is staged aside while workers run. The journal is written before each step and every step may be
done twice, so `recover` can finish from any point: back to the old pair before `switching`, on to the new one after,
and back again if on is not possible. What the switch displaces is kept whole and sealed as a safety checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from lych_checkpoint import body, freeze, inspection, journal
from lych_checkpoint.errors import Refused, RestoreOpen, UnknownName
from lych_checkpoint.federation import Federation
from lych_checkpoint.journal import Journal
from lych_checkpoint.lease import gone, lease, lock, marks
from lych_checkpoint.manifest import Manifest
from lych_checkpoint.process import Identity
from lych_checkpoint.records import load_record
from lych_checkpoint.restoration import RESTORED, Restoration


def restore(federation: Federation, name: str, app: Any = None, *, safety: bool = True) -> dict[str, Any]:
    """Bring body and soul of a sealed checkpoint back together.

    Without ``safety`` the displaced pair is kept only until the new one is live: there is no undo.

    Returns:
        ``checkpoint``, ``safety`` (the id under which the displaced pair is kept, or None), ``generation`` and
        ``phases_ms``.

    Raises:
        Refused: the vault has no room for the displaced pair (code ``no-room``); nothing changed.
        RestoreOpen: another restore has not ended, or this one could neither end nor be undone.
        CheckpointError: nothing was displaced, or all of it is back.
    """
    with journal.held(federation.vault), lock.held(federation.store(), "restore"):
        if journal.read(federation.vault) is not None:
            raise RestoreOpen("an earlier restore has not ended", str(federation.vault.root),
                              "lych-checkpoint recover")
        manifest = verified(federation, name)
        needed_bytes, free_bytes = room(federation, federation.uncommitted())
        if safety and needed_bytes > free_bytes:
            raise Refused(f"what it displaces may need {needed_bytes >> 20} MiB; {free_bytes >> 20} are free",
                          str(federation.vault.root), "make room, or restore with --no-safety", "no-room")
        work = Restoration.begin(federation, manifest, safety=safety)
        with work.undone_on_error():
            work.stage()
            gone.sweep(federation.store(), federation.settings.gone_after_s)
            gone.settle(federation.store())
            work.ask_hosts()
            terms = federation.terms(freeze.RESTORE, f"restore {manifest.id}")
            # The inner block ends first: what was displaced is back before any worker thaws.
            with freeze.frozen(federation.store(), terms, federation.ring(app)) as frozen, work.undone_on_error():
                frozen.wait_for_acks()
                frozen.drain()
                work.close_in(frozen)
                work.switch()
                work.awake()
            work.finish()
        return work.document()


def room(federation: Federation, uncommitted: Mapping[str, body.Uncommitted | None]) -> tuple[int, int]:
    """Return the bytes that a safety copy may need in the vault, and those that are free there.

    Only bundles lie there, of all commits and of what is ``uncommitted``: the displaced data stay where they are,
    under another name.
    """
    loose_bytes = sum(one.size_bytes for one in uncommitted.values() if one is not None)
    # The raw tree of a dirty repository is kept in the vault, and bundled besides.
    return body.weight_bytes(federation.found()) + 2 * loose_bytes, shutil.disk_usage(federation.vault.root).free


def newest_safety(federation: Federation) -> str:
    """Return the id of what the last restore displaced: restoring it is the undo.

    Raises:
        UnknownName: nothing was ever displaced, or the last restore kept nothing of it.
    """
    last = next((one for one in ended(federation) if one["outcome"] == RESTORED), None)
    if last is None:
        raise UnknownName("no restore has displaced anything yet", "--undo", "lych-checkpoint list")
    if not last["safety"]:
        raise UnknownName(f"the last restore, of {last['checkpoint']}, kept nothing of what it displaced", "--undo",
                          "lych-checkpoint list")
    return str(last["ticket"])


def ended(federation: Federation) -> Iterator[dict[str, Any]]:
    """Give the records of the restores that ended, however they did, the newest first."""
    for path in sorted(federation.vault.root.glob("notes/restore-*.json"), reverse=True):
        yield load_record(path.read_bytes(), str(path))


def recover(federation: Federation) -> dict[str, Any]:
    """End an open restore, on the new pair or on the old one; with nothing open it does nothing.

    Raises:
        RestoreOpen: neither could be reached; the message says why, and `recover` may be tried again.
        Refused: the restore works on the disk of another host (code ``other-host``).
    """
    with journal.held(federation.vault), lock.held(federation.store(), "recover"):
        entry = journal.read(federation.vault)
        if entry is None:
            marks.mark_journal(federation.store(), "")
            _end_dead_freeze(federation)
            return {"recovered": None}
        _refuse_elsewhere(federation, entry)
        work = Restoration.resume(federation, entry)
        if entry.phase in ("staging", "closing", "undone"):
            work.undo("interrupted before anything was displaced")
            _end_dead_freeze(federation)
            return {"recovered": "old", "checkpoint": entry.checkpoint}
        with work.undone_on_error():
            if entry.phase != "done":
                work.switch()
            work.awake()
            work.finish()
        _end_dead_freeze(federation)
        return {"recovered": "new", **work.document()}


def _refuse_elsewhere(federation: Federation, entry: Journal) -> None:
    """Refuse where the body is another checkout. A host that was renamed, as containers are, finds its staging."""
    here = Identity.mine().host
    if here != entry.host and not body.is_staged(federation.settings.root, entry.ticket):
        raise Refused(
            f"this restore works on the disk of {entry.host}; this is {here}", str(federation.vault.root),
            f"run `lych-checkpoint recover` on {entry.host}; if that is gone for good, take "
            f"{journal.path(federation.vault)} away and restore a checkpoint here", "other-host")


def _end_dead_freeze(federation: Federation) -> None:
    """End the freeze of a restore that died: we hold its locks, so its owner is dead, and its pair is whole."""
    standing = lease.read(federation.store())
    if standing is not None and standing.mode == freeze.RESTORE:
        lease.drop(federation.store(), standing.token)


def verified(federation: Federation, name: str) -> Manifest:
    """Return the manifest of a checkpoint that is whole, and this federation's."""
    manifest = federation.vault.manifest(inspection.verify(federation, name)["id"])
    if manifest.uuid != federation.uuid:
        raise Refused("this checkpoint belongs to another federation", manifest.id, "", "foreign-checkpoint")
    return manifest
