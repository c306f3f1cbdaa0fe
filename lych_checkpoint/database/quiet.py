"""The proof that nobody writes, and the fence that makes it so.

Two readings frame the capture. A transaction that ended between them changes `pg_current_snapshot()`; one that still
runs at the second is found by its xid, for the snapshot's text does not show an xid above all that have ended.
Prepared transactions have no session. A `nextval` from preallocated values changes neither: sequences are compared
by value besides. LSNs prove nothing: reading writes hint bits, and idle servers log.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import psycopg
from psycopg.sql import SQL, Identifier

from lych_checkpoint.database.connection import Connection, place, rows
from lych_checkpoint.errors import Refused

#: Longest wait of the fence for one table; above deadlock_timeout, at which autovacuum yields.
_FENCE_WAIT_MS = 2_000
#: And for all of them: workers stand still.
_FENCE_MS = 5_000
#: Oids below are the server's own catalogs.
_FIRST_USER_OID = 16_384
_XID_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look: the snapshot's text, and whoever writes, each in words."""

    snapshot: str
    writers: tuple[str, ...]


def look(connection: Connection, ours: Collection[int] = (), *, whole: bool = True) -> Reading:
    """Read who writes; idle sessions and those that only read do not.

    Whoever holds an xid writes; so does whoever holds a write lock on a table or sequence, though it may not have
    come to its first row yet. Autovacuum changes no row's content and is no writer.

    Args:
        connection: in autocommit, so that each statement sees the present.
        ours: pids of our own sessions.
        whole: on this server, whatever the database; else in this database alone. There a transaction without a
            session says nothing: it ended while this was read, and moves the snapshot if it wrote here.
    """
    # Most roles see nobody's backend_type but their own; that autovacuum is in a database as no user, all see.
    found = rows(connection, """
        SELECT CASE WHEN a.usesysid IS NULL AND a.datid IS NOT NULL THEN 'autovacuum' ELSE 'session' END,
            a.pid, a.usename, coalesce(nullif(a.application_name, ''), a.backend_type, ''), a.datname,
            a.backend_xid::text::bigint, coalesce(a.datname = current_database(), false)
        FROM pg_stat_activity a
        WHERE a.backend_xid IS NOT NULL OR a.pid IN (
            SELECT l.pid FROM pg_locks l
            WHERE l.granted AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.relation >= %s)
        UNION ALL
        SELECT 'prepared', NULL, owner, gid, database, transaction::text::bigint, database = current_database()
        FROM pg_prepared_xacts
        UNION ALL
        SELECT 'snapshot', NULL, NULL, pg_current_snapshot()::text, NULL, NULL, false""", (_FIRST_USER_OID,))
    # One statement, in whatever order it is run: who slips between its parts ends before the other reading, and moves
    # the snapshot, or still runs then, and is named.
    snapshot = next(str(name) for kind, _, _, name, *_ in found if kind == "snapshot")
    writers, known = [], set()
    for kind, pid, user, name, database, xid, here in found:
        known.add(xid)
        if pid in ours or kind in ("autovacuum", "snapshot") or not (whole or here):
            continue
        if kind == "prepared":
            writers.append(f"prepared transaction {name!r} of user {user} in database {database}")
        else:
            writers.append(f"pid {pid}, user {user}, application {name!r}, database {database}")
    if whole:
        unnamed = [xid for xid in _in_progress(snapshot) if xid & _XID_MASK not in known]
        writers += [f"transaction {xid} of an unknown session" for xid in unnamed]
    return Reading(snapshot=snapshot, writers=tuple(dict.fromkeys(writers)))


def flush(connection: Connection) -> None:
    """Write an empty commit that waits for the disk: commits that did not wait are on it afterwards too.

    Takes an xid, so it comes before the first reading. Waits for this server's disk only, not for its standbys.
    """
    rows(connection, "BEGIN; SET LOCAL synchronous_commit TO local; "
                     "SELECT pg_logical_emit_message(true, 'lych', 'flush'); COMMIT")  # one round trip


def fence(connection: Connection) -> None:
    """Begin a transaction that keeps everybody from writing to this database's tables; readers pass.

    The fence is the transaction: `rollback`, or the end of the connection, drops it.

    Raises:
        Refused: transactions that write did not end in time (code ``writers``), or the role may not lock a table.
    """
    tables = [Identifier(*name) for name in rows(connection, """
        SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
            AND c.oid >= %s AND NOT c.relispartition
        ORDER BY c.oid""", (_FIRST_USER_OID,))]
    began_s = time.monotonic()
    busy: list[Identifier] = []
    while True:
        rows(connection, "BEGIN")
        if not tables:
            return
        left_ms = max(1, round(_FENCE_MS - (time.monotonic() - began_s) * 1000))
        rows(connection, SQL("SET LOCAL lock_timeout TO {}; SET LOCAL statement_timeout TO {}").format(
            min(_FENCE_WAIT_MS, left_ms), left_ms))
        try:
            for table in busy:
                rows(connection, SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(table))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            raise _unfenced(connection, began_s) from error
        try:
            # Whoever waits while it holds some may hold them against one who has others: a deadlock.
            rows(connection, SQL("LOCK TABLE {} IN EXCLUSIVE MODE NOWAIT").format(SQL(", ").join(tables)))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            if left_ms == 1:
                raise _unfenced(connection, began_s) from error
            drop_fence(connection)
            busy = _busy(connection)
        else:
            return


def _busy(connection: Connection) -> list[Identifier]:
    """Return one table that somebody writes to, if there is one: to be waited for with no other lock in hand."""
    return [Identifier(*name) for name in rows(connection, """
        SELECT n.nspname, c.relname FROM pg_locks l JOIN pg_class held ON held.oid = l.relation
        JOIN pg_class c ON c.oid = coalesce(pg_partition_root(held.oid), held.oid)
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.granted
            AND l.mode <> 'AccessShareLock' AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= %s
        ORDER BY c.oid LIMIT 1""", (_FIRST_USER_OID,))]


def _unfenced(connection: Connection, began_s: float) -> Refused:
    waited_s = time.monotonic() - began_s
    drop_fence(connection)
    named = look(connection, {connection.info.backend_pid}, whole=False).writers
    return Refused(f"the fence waited {waited_s:.1f} s for {named[0] if named else 'a lock'}", place(connection),
                   "end that transaction", "writers")


def drop_fence(connection: Connection) -> None:
    """Let everybody write again."""
    rows(connection, "ROLLBACK")


def _in_progress(snapshot: str) -> list[int]:
    listed = snapshot.rpartition(":")[2]
    return [int(xid) for xid in listed.split(",") if xid]
