"""The plan of a restore: what comes, what goes, what is lost, and how long it takes. Changes nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from lych_checkpoint import body, restore, soul, witness
from lych_checkpoint.database import activity, connect, losses, speaking
from lych_checkpoint.database.server import describe
from lych_checkpoint.drivers.base import takes_whole_cluster
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock, Manifest
from lych_checkpoint.restoration import PHASES, RESTORED, next_generation
from lych_checkpoint.witness import Witness

#: Of what earlier restores with the same driver took, so many count.
_RUNS = 5


def plan(federation: Federation, name: str, waiting: dict[str, int] | None = None) -> dict[str, Any]:
    """Say what a restore would bring and take; ``waiting`` is how many messages wait by queue, by the broker's word.

    Returns:
        ``checkpoint``, ``created_at``, ``age_s``, ``driver``, ``generation`` {from, to}; ``repos`` by path: ``from``
        and ``to`` (commits, None where there is no repository), ``relation``, ``comes`` and ``goes`` (how many
        commits, and the newest by name, or None where nobody can know) and ``uncommitted`` {count, named, size_bytes}
        (what lies on top and goes too, None where nobody can know); ``neighbours``: other databases of the cluster
        that go back too; ``rows`` by table {inserted, updated, deleted} since the checkpoint, by the server's
        statistics, or None; ``safety`` {needed_bytes, free_bytes, fits}; ``queues`` {waiting (by queue), policy}, or
        None where the broker was not asked; ``expected`` {runs, total_s, still_s}, medians of earlier restores by
        this driver, or None.

    Raises:
        UnknownName: no such checkpoint.
        Damage: its sealed bytes are not what was sealed.
    """
    manifest = restore.verified(federation, name)
    settings = federation.settings
    uncommitted = federation.uncommitted()
    needed_bytes, free_bytes = restore.room(federation, uncommitted)
    with connect(settings.need("database_url")) as connection, speaking(connection):
        known = witness.read(connection)
        present = activity.read(connection)
        cluster = describe(connection).neighbours if takes_whole_cluster(manifest.soul.driver) else ()
    created = datetime.fromisoformat(manifest.created_at)
    return {
        "checkpoint": manifest.id, "created_at": manifest.created_at, "driver": manifest.soul.driver,
        "age_s": round((datetime.now(UTC) - created).total_seconds()),
        "generation": {"from": known.generation if known else None, "to": next_generation(federation, known)},
        "repos": _repos(federation, manifest, uncommitted),
        "neighbours": losses.neighbours(settings.need("database_url"), cluster),
        "rows": _rows(federation, manifest, known, present),
        "safety": {"needed_bytes": needed_bytes, "free_bytes": free_bytes, "fits": needed_bytes <= free_bytes},
        "queues": None if waiting is None else {"waiting": waiting, "policy": settings.queue_policy},
        "expected": _expected(federation, manifest.soul.driver),
    }


def _repos(
    federation: Federation, manifest: Manifest, uncommitted: Mapping[str, body.Uncommitted | None],
) -> dict[str, Any]:
    settings = federation.settings
    path = federation.vault.path(manifest.id) / "lychd.lock"
    sealed = BodyLock.loads(path.read_text(), str(path))
    standing = body.present(settings.root, settings.core, settings.extensions)
    return {
        path: {"from": one.old or None, "to": one.new or None, "relation": one.relation,
               "comes": asdict(one.comes) if one.comes else None, "goes": asdict(one.goes) if one.goes else None,
               "uncommitted": asdict(loose) if (loose := uncommitted.get(path)) else None}
        for path, one in body.compare(standing, sealed.repos, settings.root).items()
    }


def _rows(
    federation: Federation, manifest: Manifest, known: Witness | None, present: dict[str, Any],
) -> dict[str, Any] | None:
    """Return what changed since, unless a restore put other data in place meanwhile, with counts of their own."""
    try:
        then = json.loads((federation.vault.path(manifest.id) / "soul" / soul.ACTIVITY).read_bytes())
    except FileNotFoundError:  # a safety copy, or an earlier release's
        return None
    if known is None or known.restored > manifest.soul.generation:
        return None
    return activity.changes(then, present)


def _expected(federation: Federation, driver: str) -> dict[str, Any] | None:
    """Return how long restores took: in all, and while nobody worked."""
    taken = [one["phases_ms"] for one in restore.ended(federation)
             if one.get("driver") == driver and one["outcome"] == RESTORED and set(PHASES) <= set(one["phases_ms"])]
    if not taken:
        return None
    return {"runs": len(taken[:_RUNS]), **{
        name: round(statistics.median(sum(one[phase] for phase in phases) for one in taken[:_RUNS]) / 1000, 1)
        for name, phases in (("total_s", PHASES), ("still_s", PHASES[1:-1]))}}
