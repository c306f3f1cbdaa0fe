"""What pg_dump needs from us: a snapshot of the freeze, and proof that it owns its locks on the same tables.

pg_dump reads the catalogs of its snapshot but the files of the present: a TRUNCATE or a rewriting ALTER between the
snapshot and its LOCK gives an empty table and exit code 0. Once it holds ACCESS SHARE on a table neither can happen.
"""

from __future__ import annotations

from dataclasses import dataclass

from lych_checkpoint.database.connection import Connection, rows


@dataclass(frozen=True, slots=True)
class Table:
    """One table by oid: its file, which every rewrite changes, and whether pg_dump locks it."""

    name: str
    file: int
    locked: bool


def begin(connection: Connection) -> str:
    """Begin a transaction that sees this instant until `end`; return the id by which others see the same."""
    rows(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    return str(rows(connection, "SELECT pg_export_snapshot()")[0][0])


def end(connection: Connection) -> None:
    """Let go of the instant."""
    rows(connection, "ROLLBACK")


def tables(connection: Connection) -> dict[int, Table]:
    """Return all tables that hold data, as the connection's transaction sees them.

    pg_dump locks no table that belongs to an extension.
    """
    found = rows(connection, """
        SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname), c.relfilenode::bigint, NOT EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
            AND c.oid >= 16384""")
    return {oid: Table(name, file, locked) for oid, name, file, locked in found}


def sessions(connection: Connection, beginning: str) -> list[str]:
    """Return the names of this role's sessions on this database that begin so."""
    return [name for (name,) in rows(connection, """
        SELECT application_name FROM pg_stat_activity
        WHERE datname = current_database() AND usename = current_user AND starts_with(application_name, %s)""",
        (beginning,))]


def end_sessions(connection: Connection, beginning: str) -> None:
    """End this role's sessions on this database whose names begin so."""
    rows(connection, """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND usename = current_user AND starts_with(application_name, %s)""",
        (beginning,))


def unlocked(connection: Connection, application_name: str, wanted: list[int]) -> int:
    """Return how many of the tables ``wanted`` the sessions of that name have no lock on yet."""
    return int(rows(connection, """
        SELECT count(*) FROM unnest(%s::bigint[]) AS wanted WHERE NOT EXISTS (
            SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
            WHERE a.application_name = %s AND l.locktype = 'relation' AND l.granted
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND l.mode = 'AccessShareLock' AND l.relation = wanted::oid)""", (wanted, application_name))[0][0])
