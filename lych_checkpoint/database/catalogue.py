"""Whole databases: made, copied, renamed, opened and shut. Found again by oid, which a rename does not change.

Every function takes a connection to *another* database of the same server (`maintenance`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Identifier

from lych_checkpoint.database.address import name_of, with_name
from lych_checkpoint.database.connection import Connection, connect, patient, place, rows
from lych_checkpoint.errors import Refused

#: PostgreSQL cuts longer names silently, in bytes.
_NAME_BYTES = 63
#: How long ended sessions may take to go.
_LEAVE_S = 10.0


@contextmanager
def maintenance(url: str) -> Iterator[Connection]:
    """Connect to the same server beside the soul's own database.

    Raises:
        Away: it cannot be reached.
    """
    beside = "postgres" if name_of(url) != "postgres" else "template1"
    with connect(with_name(url, beside), name="lych-checkpoint maintenance") as connection:
        patient(connection)
        yield connection


def beside(name: str, mark: str, ticket: str) -> str:
    """Return a name beside ``name`` that ``mark`` and ``ticket`` make unique, in at most 63 bytes."""
    end = f"__{mark}_{ticket}".encode()
    if len(end) > _NAME_BYTES - 8:
        raise ValueError(f"the ticket {ticket!r} leaves no room for a name")
    return name.encode()[:_NAME_BYTES - len(end)].decode(errors="ignore") + end.decode()


def oid_of(connection: Connection, name: str) -> int:
    """Return the database's oid, 0 if there is none."""
    found = rows(connection, "SELECT oid::bigint FROM pg_database WHERE datname = %s", (name,))
    return int(found[0][0]) if found else 0


def name_by(connection: Connection, oid: int) -> str:
    """Return the database's present name, empty if it is gone."""
    found = rows(connection, "SELECT datname::text FROM pg_database WHERE oid = %s::bigint::oid", (oid,))
    return str(found[0][0]) if found else ""


def size_bytes(connection: Connection, name: str) -> int:
    """Return what the database takes on the server's disk."""
    return int(rows(connection, "SELECT pg_database_size(%s::name)", (name,))[0][0])


def copy(connection: Connection, source: str, name: str) -> None:
    """Make ``name`` a copy of ``source``, which nobody may be connected to."""
    # The default since 15 writes the whole copy into the WAL: twice to three times slower from 1 GB on.
    how = SQL(" STRATEGY FILE_COPY") if connection.info.server_version >= 150_000 else SQL("")
    rows(connection, SQL("CREATE DATABASE {} TEMPLATE {}{}").format(Identifier(name), Identifier(source), how))


def drop(connection: Connection, name: str) -> None:
    """Remove the database and end whoever is on it; gone already is gone."""
    rows(connection, SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def admit(connection: Connection, name: str, *, everybody: bool) -> None:
    """Let clients connect to the database, or nobody at all; belongs to the oid, so a rename takes it along."""
    answer = SQL("true") if everybody else SQL("false")
    rows(connection, SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(Identifier(name), answer))


def empty(connection: Connection, *names: str) -> None:
    """End every session on the databases and return when they are gone.

    Raises:
        Refused: one stays (code ``sessions-stay``).
    """
    deadline = time.monotonic() + _LEAVE_S
    while True:
        left = rows(connection, """
            SELECT pid, usename, application_name, pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = ANY(%s) AND pid <> pg_backend_pid()""", (list(names),))
        if not left:
            return
        if time.monotonic() > deadline:
            pid, user, application, _ = left[0]
            raise Refused(f"the session of pid {pid}, user {user}, application {application!r} does not end",
                          place(connection), f"end process {pid}", "sessions-stay")
        time.sleep(0.01)


def rename_both(connection: Connection, first: tuple[str, str], second: tuple[str, str]) -> None:
    """Rename two databases, each (from, to), in one transaction: after a kill either both or neither.

    Raises:
        Refused: somebody keeps connecting to one of them (code ``sessions-stay``).
    """
    deadline = time.monotonic() + _LEAVE_S
    while True:
        empty(connection, first[0], second[0])
        try:
            with connection.transaction():
                for old, new in (first, second):
                    rows(connection, SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(old), Identifier(new)))
        except psycopg.errors.ObjectInUse as error:  # somebody came between; autovacuum counts
            if time.monotonic() > deadline:
                raise Refused("sessions keep coming to the database", f"{place(connection)}: {first[0]}",
                              "stop what connects to it", "sessions-stay") from error
        else:
            return
