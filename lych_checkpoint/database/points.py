"""Named points in the WAL, and the slot that keeps the WAL on its way to them."""

from __future__ import annotations

from collections.abc import Collection

from lych_checkpoint.database.connection import Connection, rows

#: How all our lasting slots begin. Others of ours are temporary, and go with their session.
_SLOT = "lych_base_"


def unable(connection: Connection) -> tuple[str, str] | None:
    """Return None, or why this role cannot name a point, and the command that makes it so."""
    (role, may), = rows(connection, """
        SELECT current_user::text, has_function_privilege('pg_create_restore_point(text)', 'EXECUTE')""")
    return None if may else (f"role {role} may not name points",
                             f"GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {role}")


def unbounded(connection: Connection) -> bool:
    """Whether a slot keeps WAL until the disk is full."""
    return bool(rows(connection, "SELECT current_setting('max_slot_wal_keep_size') = '-1'")[0][0])


def name_point(connection: Connection, name: str) -> int:
    """Write a point of that name (63 bytes at most) into the WAL; return where it ends. It is not on the disk yet."""
    return int(rows(connection, "SELECT pg_create_restore_point(%s) - '0/0'::pg_lsn", (name,))[0][0])


def keep(connection: Connection, base: str) -> None:
    """Keep all WAL from here on for the base of that name, until `drop_others`."""
    rows(connection, "SELECT pg_create_physical_replication_slot(%s, true)", (_SLOT + base,))


def keeps(connection: Connection, base: str) -> bool:
    """Whether the WAL for that base is kept, and was since the last `advance`."""
    return bool(rows(connection, """
        SELECT count(*) FROM pg_replication_slots
        WHERE slot_name = %s AND wal_status IN ('reserved', 'extended')""", (_SLOT + base,))[0][0])


def advance(connection: Connection, base: str, position: int) -> None:
    """Keep WAL only from ``position`` on. Succeeds only if all of it was kept until now."""
    rows(connection, "SELECT pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s::numeric)", (_SLOT + base, position))


def drop(connection: Connection, base: str) -> None:
    """Keep no more WAL for that base; kept none already is done."""
    rows(connection, """
        SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE slot_name = %s AND NOT active""", (_SLOT + base,))


def drop_others(connection: Connection, bases: Collection[str]) -> None:
    """Keep no more WAL but for those bases."""
    rows(connection, """
        SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE starts_with(slot_name::text, %s) AND slot_name <> ALL (%s) AND NOT active""",
        (_SLOT, [_SLOT + base for base in bases]))
