"""Sequences by value. No snapshot covers them: they are not transactional, and a crash skips up to 32 values."""

from __future__ import annotations

from psycopg.sql import SQL

from lych_checkpoint.database.connection import Connection, atomic, place, rows
from lych_checkpoint.errors import Damage
from lych_checkpoint.manifest import Sequence

#: Sequences read by one statement.
_BATCH = 500


def read(connection: Connection) -> tuple[Sequence, ...]:
    """Return all sequences of this database, temporary ones aside, by quoted name."""
    return values(connection, selects(connection))


def selects(connection: Connection) -> list[str]:
    """Return for each sequence the statement that reads it; good until the snapshot moves."""
    # From each sequence itself: the view pg_sequences hides the value of one that was set but not called. The server
    # quotes the names: to do that here takes longer, in the window, than to read the values.
    return [select for select, in rows(connection, """
        SELECT format('SELECT %L, last_value, is_called FROM %1$s', format('%I.%I', n.nspname, c.relname))
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't' ORDER BY n.nspname, c.relname""")]


def values(connection: Connection, each: list[str]) -> tuple[Sequence, ...]:
    """Return what those `selects` read."""
    found: list[Sequence] = []
    for start in range(0, len(each), _BATCH):
        asked = SQL(" UNION ALL ".join(each[start:start + _BATCH]))
        found += [Sequence(name=name, last_value=value, is_called=called)
                  for name, value, called in rows(connection, asked)]
    return tuple(sorted(found, key=lambda one: one.name))


def write(connection: Connection, sequences: tuple[Sequence, ...]) -> None:
    """Set every sequence to its value, and read them back.

    Raises:
        Damage: a sequence is missing, or is not what it was set to.
    """
    with atomic(connection):
        missing = rows(connection, "SELECT name FROM unnest(%s::text[]) name WHERE to_regclass(name) IS NULL",
                       ([one.name for one in sequences],))
        if missing:
            raise Damage(f"the sequence {missing[0][0]} is not in the restored data", place(connection), "",
                         "sequence-missing")
        rows(connection, """
            SELECT setval(name::regclass, value, called)
            FROM unnest(%s::text[], %s::bigint[], %s::boolean[]) AS s (name, value, called)""",
             ([one.name for one in sequences], [one.last_value for one in sequences],
              [one.is_called for one in sequences]))
    wanted = {one.name: one for one in sequences}
    odd = [one.name for one in read(connection) if one.name in wanted and one != wanted[one.name]]
    if odd:
        raise Damage(f"the sequence {odd[0]} does not hold what it was set to", place(connection), "",
                     "sequence-differs")
