"""What a dump could not take or give back, asked before anyone is frozen."""

from __future__ import annotations

from lych_checkpoint.database import Connection, catalogue, place, replication, rights
from lych_checkpoint.database.server import Server, describe, materialized_views
from lych_checkpoint.errors import Refused


def check(connection: Connection) -> list[str]:
    """Refuse what would fail in the window or at a restore; return warnings of what comes back otherwise.

    Raises:
        Refused: code ``too-few-locks``, ``unreadable``, ``row-security``, ``unrestorable`` or ``subscription``.
    """
    server, where = describe(connection), place(connection)
    if server.tables >= server.lock_capacity:
        raise Refused(f"{server.tables} tables need more locks than the server has ({server.lock_capacity})",
                      where, "raise max_locks_per_transaction", "too-few-locks")
    if lacking := rights.unreadable(connection):
        raise Refused(f"role {server.role} may not read {_some(lacking)}", where,
                      f"grant it to {server.role}, or connect as the owner", "unreadable")
    if hidden := rights.filtered(connection):
        raise Refused(f"row security hides rows of {_some(hidden)} from role {server.role}", where,
                      f"ALTER ROLE {server.role} BYPASSRLS", "row-security")
    _refuse_unrestorable(connection, server, where)
    if subscribed := replication.subscriptions(connection):
        raise Refused(f"the subscription {subscribed[0]} writes here, and a dump forgets how far it was", where,
                      f"DROP SUBSCRIPTION {subscribed[0]}, or use a driver that copies the cluster",
                      "subscription")
    views, slots = materialized_views(connection), replication.logical_slots(connection)
    warnings = [f"pg_dump keeps no content of materialized views: {', '.join(views)} come back refreshed"
                ] if views else []
    if slots:
        warnings.append(f"logical slots stay with the data that a restore displaces: who reads from "
                        f"{', '.join(slots)} must begin anew then")
    if sessions := catalogue.unendable(connection, server.database):
        warnings.append(f"role {server.role} could not end for a restore the session of {_some(sessions)}")
    return warnings


def _refuse_unrestorable(connection: Connection, server: Server, where: str) -> None:
    if owned := rights.foreign(connection):
        what, owner = owned[0]
        raise Refused(f"role {server.role} could not give {what} back to its owner {owner}", where,
                      f"GRANT {owner} TO {server.role}", "unrestorable")
    if settings := rights.out_of_reach(connection):
        raise Refused(f"role {server.role} may not make the database's setting {_some(settings)} again", where,
                      "reset it, or connect as a superuser", "unrestorable")
    if closed := rights.closed_tablespaces(connection):
        raise Refused(f"role {server.role} may not make tables in the tablespace {_some(closed)}", where,
                      f"GRANT CREATE ON TABLESPACE {closed[0]} TO {server.role}", "unrestorable")
    if untrusted := rights.untrusted_extensions(connection):
        raise Refused(f"role {server.role} may not install the extension {_some(untrusted)}", where,
                      "connect as a superuser", "unrestorable")


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]
