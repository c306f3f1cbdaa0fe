"""Verify a sealed checkpoint: every byte in the vault, and what the driver keeps outside it."""

from __future__ import annotations

from typing import Any

from lych_checkpoint import seal
from lych_checkpoint.errors import Damage
from lych_checkpoint.federation import Federation
from lych_checkpoint.soul import Soul


def verify(federation: Federation, name: str, *, deep: bool = False) -> dict[str, Any]:
    """Return ``id``, ``state``, the ``depth`` reached, and what became of the checkpoint sealed before this one.

    ``previous`` is ``first`` where there was none, ``here``, or ``gone``: pruned, or its seal is another. That is no
    damage to this one, which needs nothing of it.

    Raises:
        UnknownName: no such checkpoint.
        Damage: something changed, went missing or was added; each is named.
        Away: the driver needs the server, and it is away.
    """
    manifest = federation.vault.resolve(name)
    folder = federation.vault.path(manifest.id)
    damages = seal.verify(folder, federation.settings.key_path)
    if not damages:
        soul = Soul.reopen(federation.ground(), manifest.soul.driver, manifest.soul.evidence,
                           federation.settings.helper)
        damages = soul.verify(manifest.soul, folder / "soul", deep=deep)
    if damages:
        raise Damage("; ".join(damages), manifest.id, "restore another checkpoint, or copy this one back")
    previous = "first" if not manifest.previous else \
        "here" if federation.vault.has_seal(manifest.previous) else "gone"
    return {"id": manifest.id, "state": "whole", "depth": "deep" if deep else "digests and identity",
            "previous": previous}
