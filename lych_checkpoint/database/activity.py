"""How many rows were written, by the server's own statistics: a count for people, not a proof.

Statistics arrive up to a second late, and are lost in a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lych_checkpoint.database.connection import Connection, rows

#: Inserted, updated and deleted rows, as counted since the statistics began.
_KINDS = ("inserted", "updated", "deleted")


def read(connection: Connection) -> dict[str, Any]:
    """Return ``{since, tables: {name: [inserted, updated, deleted]}}`` of this database, plain enough for JSON."""
    (since,), = rows(connection, """
        SELECT coalesce(stats_reset::text, '') FROM pg_stat_database WHERE datname = current_database()""")
    found = rows(connection, """
        SELECT format('%I.%I', schemaname, relname), n_tup_ins, n_tup_upd, n_tup_del
        FROM pg_stat_user_tables WHERE schemaname <> 'lych'""")
    return {"since": since, "tables": {name: list(counts) for name, *counts in found}}


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    """Return ``{table: {inserted, updated, deleted}}`` of the tables that changed; None if the counts began anew."""
    found = {}
    for name, counts in now["tables"].items():
        before = then["tables"].get(name, [0, 0, 0])
        new = [count - old for count, old in zip(counts, before, strict=True)]
        if min(new) < 0:
            return None
        if any(new):
            found[name] = dict(zip(_KINDS, new, strict=True))
    return found if then["since"] == now["since"] else None
