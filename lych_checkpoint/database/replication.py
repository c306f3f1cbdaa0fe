"""What leads changes into a database and out of it, row by row: subscriptions and logical slots."""

from __future__ import annotations

from lych_checkpoint.database.connection import Connection, rows


def subscriptions(connection: Connection) -> list[str]:
    """Return the subscriptions of this database, disabled ones too."""
    return [name for (name,) in rows(connection, """
        SELECT s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database() ORDER BY 1""")]


def logical_slots(connection: Connection) -> list[str]:
    """Return the logical slots of this database that outlive their session."""
    return [name for (name,) in rows(connection, """
        SELECT slot_name::text FROM pg_replication_slots
        WHERE slot_type = 'logical' AND NOT temporary AND database = current_database() ORDER BY 1""")]
