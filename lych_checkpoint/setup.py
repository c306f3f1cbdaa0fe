"""Set a federation up: vault, signing key, witness. Asks nothing; what exists is kept."""

from __future__ import annotations

from typing import Any

from lych_checkpoint import seal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.federation import Federation


def init(federation: Federation) -> dict[str, Any]:
    """Make what is missing and return ``federation``, ``uuid``, ``vault``, ``key`` and ``generation``.

    Raises:
        Refused: vault or database belong to another federation, or may not be written.
        Away: the database or the vault's file system cannot be reached.
    """
    settings, vault = federation.settings, federation.vault
    vault.init()
    seal.make_key(settings.key_path)
    with connect(settings.need("database_url")) as connection:
        known = witness.init(connection, settings.federation)
    vault.write_federation(known.federation, known.uuid)
    if vault.last_lineage() is None:
        vault.append_lineage("init", known.generation, known.signature)
    return {"federation": known.federation, "uuid": known.uuid, "vault": str(vault.root),
            "key": str(settings.key_path), "generation": known.generation}
