"""What a copy of the cluster's files would lose, or bring back to somebody who has gone on meanwhile."""

from __future__ import annotations

from psycopg.sql import SQL, Identifier

from lych_checkpoint.database.address import with_name
from lych_checkpoint.database.connection import Connection, connect, place, rows, speaking
from lych_checkpoint.errors import CheckpointError, Refused

#: Objects below are the server's own.
_FIRST_USER_OID = 16_384


def refuse(connection: Connection) -> None:
    """Refuse what this database or its cluster has now and a restored copy would not have.

    Cheap enough for the window: one statement, and one more for each UNLOGGED table that has pages.

    Raises:
        Refused: an UNLOGGED table has rows, which crash recovery empties (code ``unlogged``), or there is a
            tablespace, to whose live files a copy's link would lead (code ``tablespace``).
    """
    found = rows(connection, """
        SELECT NULL, spcname::text FROM pg_tablespace WHERE oid >= %s
        UNION ALL
        SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relpersistence = 'u' AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0
        ORDER BY 1, 2""", (_FIRST_USER_OID,))
    for schema, name in found:
        if schema is None:
            raise Refused(f"the tablespace {name} lies outside PGDATA", place(connection),
                          "ALTER TABLE ... SET TABLESPACE pg_default and DROP TABLESPACE it, or LYCH_DRIVER=dump",
                          "tablespace")
    if found:
        rows(connection, "SET row_security TO off")  # rows that a policy hides are an error then, and not none
    for schema, name in found:
        if rows(connection, SQL("SELECT EXISTS (SELECT FROM {})").format(Identifier(schema, name)))[0][0]:
            raise Refused(f"the UNLOGGED table {schema}.{name} has rows, which a restored copy would lose",
                          place(connection), f"ALTER TABLE {schema}.{name} SET LOGGED, or LYCH_DRIVER=dump",
                          "unlogged")


def readers(connection: Connection, *, forks: bool) -> list[str]:
    """Warn of those who read this cluster's WAL, or write what they read elsewhere into it.

    A restored copy has no slots of others, so who reads through one fails loudly after a restore. Who reads without
    one has gone further than the copy: where that begins no timeline of its own he goes on, silently, with other WAL
    of the same place. A subscription would go on behind what its publisher has confirmed since.

    Args:
        connection: to the server.
        forks: whether a restored copy begins a new timeline.

    Raises:
        Refused: somebody would go on silently (codes ``replica``, ``subscription``).
    """
    for name, address in rows(connection, """
            SELECT coalesce(nullif(application_name, ''), 'pid ' || pid), coalesce(host(client_addr), 'a socket')
            FROM pg_stat_replication
            WHERE state IS DISTINCT FROM 'backup' AND pid NOT IN (
                SELECT active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL)
            ORDER BY 1""") if not forks else ():
        raise Refused(f"{name} at {address} reads the WAL without a slot: after a restore it would go on with other "
                      "WAL, and not notice", place(connection), "give it a slot (primary_slot_name), or stop it",
                      "replica")
    warnings = [
        f"the {kind} replication slot {name} does not come back: what reads from it must be made anew after a restore"
        for kind, name in rows(connection, """
            SELECT slot_type, slot_name::text FROM pg_replication_slots
            WHERE NOT temporary AND NOT starts_with(slot_name::text, 'lych_') ORDER BY 2""")]
    for name, enabled in rows(connection, "SELECT subname::text, subenabled FROM pg_subscription ORDER BY 1"):
        if enabled:
            raise Refused(f"the subscription {name} would miss, after a restore, what came since the checkpoint",
                          place(connection), f"ALTER SUBSCRIPTION {name} DISABLE, or LYCH_DRIVER=dump",
                          "subscription")
        warnings.append(f"the subscription {name} comes back disabled: copy its tables anew before it is enabled")
    return warnings


def neighbours(url: str, names: tuple[str, ...]) -> list[str]:
    """Return the databases of ``names`` that lose something if they go back; `postgres` only if it holds anything."""
    return [name for name in names if name != "postgres" or not _is_bare(with_name(url, name))]


def _is_bare(url: str) -> bool:
    try:
        with connect(url) as connection, speaking(connection):
            return not rows(connection, "SELECT 1 FROM pg_class WHERE oid >= %s LIMIT 1", (_FIRST_USER_OID,))
    except CheckpointError:
        return False
