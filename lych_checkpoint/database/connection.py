"""Connections: made, asked, and their errors put into our words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Composed

from lych_checkpoint.database.address import host_and_name, parts
from lych_checkpoint.errors import Away, CheckpointError, Refused

__all__ = ["Connection", "atomic", "connect", "patient", "place", "rows", "speaking", "underlying"]

#: So that a server that vanished without a word is noticed while a freeze is held.
_SILENCE_MS = 10_000
#: Classes of SQLSTATE that say nothing about the request: connection failure, shutdown, too many clients.
_AWAY = ("08", "57P", "53300")
_MEND = "start the server, or set LYCH_DATABASE_URL"


def connect(url: str, *, name: str = "lych-checkpoint", timeout_s: float = 5) -> Connection:
    """Connect with autocommit and ``application_name`` set.

    Raises:
        Away: the server cannot be reached or lets nobody in.
        SettingError: ``url`` is no libpq URL.
    """
    said = {"tcp_user_timeout": _SILENCE_MS, **parts(url)}
    said |= {"application_name": name, "connect_timeout": max(1, round(timeout_s))}
    try:
        return psycopg.connect(make_conninfo("", **said), autocommit=True)
    except psycopg.OperationalError as error:
        raise Away(f"PostgreSQL cannot be reached: {_message(error)}", host_and_name(url), _MEND) from error


def place(connection: Connection) -> str:
    """Return ``host/database`` for messages."""
    with suppress(psycopg.Error):
        return f"{connection.info.host or 'local'}/{connection.info.dbname}"
    return "database"


@contextmanager
def speaking(to: Connection | str) -> Iterator[None]:
    """Turn psycopg's errors inside the block into ours.

    Raises:
        Away: the connection was lost or the server shuts down.
        Refused: the server said no (code ``database-refused``); its message is quoted.
    """
    where = to if isinstance(to, str) else place(to)
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error, where) from error


def rows(
    connection: Connection, query: LiteralString | SQL | Composed,
    values: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows as tuples, whatever row factory the connection's owner set."""
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def patient(connection: Connection) -> None:
    """Take from our session the limits that the database's owner set for applications, for as long as it lives."""
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
        rows(connection, "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = %s", (name,))
    rows(connection, "SET default_transaction_read_only TO off")


@contextmanager
def atomic(connection: Connection) -> Iterator[None]:
    """All or nothing: inside the caller's transaction where there is one or will be, else in one of its own."""
    if not connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        # Without autocommit the caller's transaction begins with its first statement. `transaction()` before that
        # would begin, and commit, one of its own.
        rows(connection, "SELECT 1")
    with connection.transaction():
        yield


def underlying(connection: Any) -> Connection:
    """Return the psycopg connection inside what a caller has: itself, SQLAlchemy's or Django's.

    Raises:
        Refused: there is none.
    """
    seen = connection
    for _ in range(4):
        if isinstance(seen, Connection):
            return seen
        if hasattr(seen, "ensure_connection"):  # Django opens on first use
            seen.ensure_connection()
        inner = getattr(seen, "driver_connection", None) or getattr(seen, "connection", None)
        seen = inner() if callable(inner) else inner
    kind = f"{type(connection).__module__}.{type(connection).__name__}"
    raise Refused(f"a {kind} holds no psycopg connection", "imprint", "use psycopg 3 below it", "no-psycopg")


def _translated(error: psycopg.Error, where: str) -> CheckpointError:
    lost = isinstance(error, psycopg.InterfaceError) or (
        isinstance(error, psycopg.OperationalError) and error.sqlstate is None)
    if lost or (error.sqlstate or "").startswith(_AWAY):
        return Away(f"PostgreSQL is gone: {_message(error)}", where, _MEND)
    return Refused(f"PostgreSQL refused: {_message(error)}", where, "", "database-refused")


def _message(error: psycopg.Error) -> str:
    lines = str(error.diag.message_primary or error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
