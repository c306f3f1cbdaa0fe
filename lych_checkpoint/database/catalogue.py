"""Whole databases: made, copied, renamed, opened and shut. Found again by oid, which a rename does not change.

Every function takes a connection to *another* database of the same server (`maintenance`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Identifier

from lych_checkpoint.database.address import name_of, with_name
from lych_checkpoint.database.connection import Connection, connect, patient, place, rows
from lych_checkpoint.errors import Refused

#: PostgreSQL cuts longer names silently, in bytes.
_NAME_BYTES = 63
#: What stands for the limit of a database whose DROP was interrupted: nobody can connect to it or alter it.
_INVALID = -2
#: How long ended sessions may take to go.
_LEAVE_S = 10.0
#: How long a look at a database, such as a monitor's, may last.
_PASSING_S = 2.0


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


def copy(connection: Connection, source: str, name: str, owner: str) -> None:
    """Make ``name`` a copy of ``source``, which nobody may be connected to; a copy inherits no owner."""
    # The default since 15 writes the whole copy into the WAL: twice to three times slower from 1 GB on.
    how = SQL(" STRATEGY FILE_COPY") if connection.info.server_version >= 150_000 else SQL("")
    rows(connection, SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}{}").format(
        Identifier(name), Identifier(owner), Identifier(source), how))


def drop(connection: Connection, name: str) -> None:
    """Remove the database and end whoever is on it; gone already is gone.

    Raises:
        Refused: a session stays on it (code ``sessions-stay``).
    """
    found = rows(connection, "SELECT datconnlimit FROM pg_database WHERE datname = %s", (name,))
    if not found:
        return
    if found[0][0] != _INVALID:
        admit(connection, name, everybody=False)
    # Not by FORCE: that would end autovacuum, which only a superuser may.
    _with_nobody(connection, (name,), lambda: rows(connection, SQL("DROP DATABASE {}").format(Identifier(name))))


def admit(connection: Connection, name: str, *, everybody: bool) -> None:
    """Let clients connect to the database, or nobody at all; belongs to the oid, so a rename takes it along."""
    answer = SQL("true") if everybody else SQL("false")
    rows(connection, SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(Identifier(name), answer))


def refuse_unendable(connection: Connection, name: str) -> None:
    """Make sure that `empty` could end the sessions that are on the database now; ends none.

    Raises:
        Refused: this role may not end one that stays (code ``sessions-stay``).
    """
    deadline = time.monotonic() + _PASSING_S
    while unendable := _unendable(connection, name):
        if time.monotonic() > deadline:
            raise _stays(connection, unendable[0])
        time.sleep(0.05)


def unendable(connection: Connection, name: str) -> list[str]:
    """Return in words the sessions on the database now that this role may not end."""
    return [f"pid {pid}, user {user}, application {application!r}"
            for pid, user, application, _ in _unendable(connection, name)]


def empty(connection: Connection, *names: str) -> None:
    """End every client's session on the databases and return when they are gone.

    Autovacuum is left: nobody but a superuser may end it, and it yields to whoever renames, copies or drops.

    Raises:
        Refused: one stays (code ``sessions-stay``).
    """
    deadline = time.monotonic() + _LEAVE_S
    while left := _sessions(connection, names):
        if time.monotonic() > deadline:
            raise _stays(connection, left[0])
        rows(connection, "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid",
             ([pid for pid, *_, may in left if may],))
        time.sleep(0.01)


def _unendable(connection: Connection, name: str) -> list[tuple[int, str, str, bool]]:
    return [one for one in _sessions(connection, [name]) if not one[-1]]


def _sessions(connection: Connection, names: Sequence[str]) -> list[tuple[int, str, str, bool]]:
    """Return pid, user and application of the other clients on the databases, and whether this role may end them."""
    return [(pid, user, application, may) for pid, user, application, may in rows(connection, """
        SELECT a.pid, a.usename::text, a.application_name, me.rolsuper OR (NOT coalesce(r.rolsuper, true) AND (
            pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))
        FROM pg_stat_activity a JOIN pg_roles me ON me.rolname = current_user
        LEFT JOIN pg_roles r ON r.oid = a.usesysid
        WHERE a.datname = ANY(%s) AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL""", (list(names),))]


def _stays(connection: Connection, session: tuple[int, str, str, bool]) -> Refused:
    pid, user, application, may = session
    what = "does not end" if may else "may not be ended by this role"
    return Refused(f"the session of pid {pid}, user {user}, application {application!r} {what}", place(connection),
                   f"end process {pid}" if may else f"end it, or GRANT {user} (or pg_signal_backend) TO this role",
                   "sessions-stay")


def rename_both(connection: Connection, first: tuple[str, str], second: tuple[str, str]) -> None:
    """Rename two databases, each (from, to), in one transaction: after a kill either both or neither.

    Raises:
        Refused: somebody keeps connecting to one of them (code ``sessions-stay``).
    """
    def rename() -> None:
        with connection.transaction():
            for old, new in (first, second):
                rows(connection, SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(old), Identifier(new)))

    _with_nobody(connection, (first[0], second[0]), rename)


def _with_nobody(connection: Connection, names: Sequence[str], act: Callable[[], object]) -> None:
    """Do what needs databases without a session: end who is on them, and again if somebody came between.

    Raises:
        Refused: somebody keeps connecting to one of them (code ``sessions-stay``).
    """
    deadline = time.monotonic() + _LEAVE_S
    while True:
        empty(connection, *names)
        try:
            act()
        except psycopg.errors.ObjectInUse as error:  # autovacuum counts, but the server itself makes it yield
            if time.monotonic() > deadline:
                raise Refused("sessions keep coming to the database", f"{place(connection)}: {names[0]}",
                              "stop what connects to it", "sessions-stay") from error
        else:
            return
