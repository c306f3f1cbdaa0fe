"""Set a federation up: vault, signing key, witness; before that the place of a cluster. What exists is kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lych_checkpoint import body, seal, witness
from lych_checkpoint.database import Connection, connect
from lych_checkpoint.database.server import identity
from lych_checkpoint.drivers import pgdata
from lych_checkpoint.errors import Refused, SettingError
from lych_checkpoint.federation import Federation
from lych_checkpoint.process import Owner
from lych_checkpoint.witness import Witness

logger = logging.getLogger(__name__)


def _first_imprint(federation: Federation, connection: Connection, known: Witness) -> Witness:
    """Give a new soul its first body; without one on disk yet that is left to the gate of the first worker."""
    try:
        return witness.imprint(connection, *body.pins(federation.members()))
    except Refused as error:
        logger.info("No body yet: %s", error, extra={"event": "init.no-body"})
        return known


def make_pgdata(path: Path, owner: str | None) -> dict[str, Any]:
    """Make a place for a new cluster, see `pgdata.make`; return ``pgdata``, ``owner`` and ``made``.

    Raises:
        SettingError: there is no user of that name.
        Refused: it would not do.
    """
    try:
        wanted = None if owner is None else Owner.named(owner)
    except KeyError as error:
        raise SettingError(f"there is no user {owner}", "--owner", "name one that is there") from error
    found, made = pgdata.make(path, wanted)
    return {"pgdata": str(path), "owner": str(found), "made": made}


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
        if not known.signature:
            known = _first_imprint(federation, connection, known)
        soul = identity(connection)
    if vault.last_lineage() is None:
        vault.append_lineage("init", known.generation, known.signature, soul=soul)
    return {"federation": known.federation, "uuid": known.uuid, "vault": str(vault.root),
            "key": str(settings.key_path), "generation": known.generation}
