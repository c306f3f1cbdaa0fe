"""Compare two checkpoints, or one with what is there now: code, lockfiles and environment. Changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lych_checkpoint import body, environment
from lych_checkpoint.database import connect
from lych_checkpoint.errors import Damage
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock, Environment, RepoPin
from lych_checkpoint.plan import plan

#: Names the body and the database as they are.
NOW = "now"


def diff(federation: Federation, old: str, new: str) -> dict[str, Any]:
    """Say how one gets from ``old`` to ``new``; against `NOW` also what a restore of the other would bring and take.

    Args:
        federation: whose checkpoints.
        old: names a checkpoint, or `NOW`.
        new: likewise.

    Returns:
        ``old`` and ``new`` (ids, or ``now``), ``repos`` by path (see `body.Comparison`), ``environment`` (what
        differs, by name, as ``{old, new}``), and ``restore``: the `plan` of one, or None.

    Raises:
        UnknownName: no such checkpoint.
        Damage: its lock cannot be read.
        Away: the database or the vault cannot be reached.
    """
    old_name, old_pins, old_around = _side(federation, old)
    new_name, new_pins, new_around = _side(federation, new)
    sealed = [name for name in (old_name, new_name) if name != NOW]
    return {
        "old": old_name, "new": new_name,
        "repos": {path: one.as_json()
                  for path, one in body.compare(old_pins, new_pins, federation.settings.root).items()},
        "environment": _changes(old_around, new_around),
        "dirty": _dirty(federation) if NOW in (old_name, new_name) else {},
        "restore": plan(federation, sealed[0]) if len(sealed) == 1 else None,
    }


def _side(federation: Federation, name: str) -> tuple[str, tuple[RepoPin, ...], Environment]:
    settings = federation.settings
    if name == NOW:
        with connect(settings.need("database_url")) as connection:
            around = environment.read(connection)
        return NOW, body.present(settings.root, settings.core, settings.extensions), around
    manifest = federation.vault.resolve(name)
    path = federation.vault.path(manifest.id) / "lychd.lock"
    try:
        lock = BodyLock.loads(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Damage(f"cannot be read: {error}", str(path), "", "malformed") from error
    return manifest.id, lock.repos, lock.environment


def _dirty(federation: Federation) -> dict[str, dict[str, Any] | None]:
    return {path: asdict(one) if one else None for path, one in federation.uncommitted().items()}


def _changes(old: Environment, new: Environment) -> dict[str, dict[str, str]]:
    """Return what differs; an environment that nobody read differs in nothing."""
    if not old.python or not new.python:
        return {}
    before, after = _flat(old), _flat(new)
    return {name: {"old": before.get(name, ""), "new": after.get(name, "")}
            for name in sorted({*before, *after}) if before.get(name) != after.get(name)}


def _flat(around: Environment) -> dict[str, str]:
    facts = asdict(around)
    return {"python": facts["python"], "postgresql": facts["postgresql"],
            **{f"extension {name}": version for name, version in facts["extensions"].items()},
            **{f"migration {place}": ", ".join(heads) for place, heads in facts["migrations"].items()}}
