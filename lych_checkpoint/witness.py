"""The witness: one row inside the soul that says which body last animated it.

It lives in the data, so it goes wherever the data go: a restore of the data alone brings back an old witness, and the
gate sees that. Every function may be called inside the caller's own transaction.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, fields
from typing import Any

from lych_checkpoint.database import Connection, atomic, place, rows, speaking
from lych_checkpoint.errors import Damage, Refused, RestoreOpen
from lych_checkpoint.records import RELEASE, VERSION, check_version, read_record

#: Any number that no other program takes for an advisory lock: two `init` at once would race in CREATE SCHEMA.
_INIT_LOCK = 0x6C796368


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What the row says.

    ``state`` is ``awake`` or ``restoring``; ``signature`` is empty before the first imprint; ``repos`` maps path to
    ``commit`` and ``tree``; ``restored`` is the generation that the last restore made, 0 if there was none; ``epoch``
    is the highest lease epoch known; ``journal`` is the id of the open restore, empty if none.
    """

    federation: str
    uuid: str
    generation: int
    state: str
    signature: str
    repos: dict[str, dict[str, str]]
    restored: int
    epoch: int
    journal: str


def read(connection: Connection) -> Witness | None:
    """Return the witness, or None where these data have none.

    Raises:
        Damage: a newer release wrote it.
        Away: the connection is lost.
    """
    with speaking(connection):
        if not _exists(connection):
            return None
        found = rows(connection, "SELECT to_jsonb(w)::text FROM lych.witness w")
    return _of(found[0][0], place(connection)) if found else None


def init(connection: Connection, federation: str) -> Witness:
    """Make schema, table and row, or return what is there. Safe to run by several processes at once.

    Raises:
        Refused: these data belong to another federation (code ``foreign-federation``), or the role may not create
            a schema.
    """
    known = read(connection)
    if known is None:
        with speaking(connection), atomic(connection):
            rows(connection, "SELECT pg_advisory_xact_lock(%s)", (_INIT_LOCK,))
            known = read(connection) or _create(connection, federation)
    if known.federation != federation:
        raise Refused(f"these data belong to the federation {known.federation!r}, not {federation!r}",
                      place(connection), "set LYCH_FEDERATION or LYCH_DATABASE_URL", "foreign-federation")
    return known


def imprint(
    connection: Connection, signature: str, repos: dict[str, dict[str, str]], *, above: int | None = None,
) -> Witness:
    """Write a new body: generation + 1. The body that is written already changes nothing.

    Args:
        connection: to the soul.
        signature: of the body.
        repos: path to ``commit`` and ``tree``.
        above: write it all the same, with a generation above this one too.

    Raises:
        Refused: there is no witness (code ``no-witness``).
        RestoreOpen: a restore brought these data back and has not ended.
    """
    with speaking(connection), atomic(connection):
        known = _locked(connection)
        if known.state != "awake":
            raise RestoreOpen(f"restore {known.journal} has not ended", place(connection), "lych-checkpoint recover")
        if above is None and (known.signature, known.repos) == (signature, repos):
            return known
        changed = rows(
            connection,
            "UPDATE lych.witness w SET generation = greatest(generation, %s) + 1, signature = %s, repos = %s::jsonb, "
            "version = %s, release = %s RETURNING to_jsonb(w)::text",
            (above or 0, signature, json.dumps(repos), VERSION, RELEASE),
        )
    return _of(changed[0][0], place(connection))


def write_epoch(connection: Connection, epoch: int) -> None:
    """Remember ``epoch`` unless a higher one is known."""
    with speaking(connection):
        rows(connection, "UPDATE lych.witness SET epoch = greatest(epoch, %s)", (epoch,))


def mark_restoring(
    connection: Connection, *, generation: int, signature: str, repos: dict[str, dict[str, str]], journal: str
) -> Witness:
    """Say in staged data which body they wait for: until `mark_awake` every gate accepts exactly that one.

    Raises:
        Refused: the staged data have no witness (code ``no-witness``).
    """
    with speaking(connection), atomic(connection):
        _locked(connection)
        changed = rows(
            connection,
            "UPDATE lych.witness w SET generation = %s, restored = %s, state = 'restoring', signature = %s, "
            "repos = %s::jsonb, journal = %s, version = %s, release = %s RETURNING to_jsonb(w)::text",
            (generation, generation, signature, json.dumps(repos), journal, VERSION, RELEASE),
        )
    return _of(changed[0][0], place(connection))


def mark_awake(connection: Connection, journal: str) -> Witness:
    """End the restore ``journal`` in the data; done already is done.

    Raises:
        Refused: these data are being restored by another journal (code ``foreign-journal``), or have no witness.
    """
    with speaking(connection), atomic(connection):
        known = _locked(connection)
        if known.state == "awake":
            return known
        if known.journal != journal:
            raise Refused(f"these data belong to restore {known.journal}, not {journal}", place(connection),
                          "lych-checkpoint recover", "foreign-journal")
        changed = rows(connection,
                       "UPDATE lych.witness w SET state = 'awake', journal = '' RETURNING to_jsonb(w)::text")
    return _of(changed[0][0], place(connection))


def _create(connection: Connection, federation: str) -> Witness:
    rows(connection, "CREATE SCHEMA IF NOT EXISTS lych")
    rows(connection, """
        CREATE TABLE IF NOT EXISTS lych.witness (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            version integer NOT NULL, release text NOT NULL,
            federation text NOT NULL, uuid text NOT NULL,
            generation bigint NOT NULL DEFAULT 0,
            state text NOT NULL DEFAULT 'awake' CHECK (state IN ('awake', 'restoring')),
            signature text NOT NULL DEFAULT '', repos jsonb NOT NULL DEFAULT '{}',
            restored bigint NOT NULL DEFAULT 0, epoch bigint NOT NULL DEFAULT 0,
            journal text NOT NULL DEFAULT ''
        )""")
    made = rows(
        connection,
        "INSERT INTO lych.witness AS w (version, release, federation, uuid) VALUES (%s, %s, %s, %s) "
        "RETURNING to_jsonb(w)::text", (VERSION, RELEASE, federation, uuid.uuid4().hex),
    )
    return _of(made[0][0], place(connection))


def _locked(connection: Connection) -> Witness:
    if not _exists(connection):
        raise _absent(connection)
    found = rows(connection, "SELECT to_jsonb(w)::text FROM lych.witness w FOR UPDATE")
    if not found:
        raise _absent(connection)
    return _of(found[0][0], place(connection))


def _exists(connection: Connection) -> bool:
    # Not to_regclass: inside a transaction it may answer from a cache that knows nothing of a table made meanwhile.
    return bool(rows(connection, """
        SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname = 'lych' AND c.relname = 'witness')""")[0][0])


def _absent(connection: Connection) -> Refused:
    return Refused("these data have no witness", place(connection), "lych-checkpoint init", "no-witness")


def _of(text: str, where: str) -> Witness:
    record: dict[str, Any] = json.loads(text)  # as text, since a caller's connection may have JSON loaders of its own
    check_version(record, f"witness in {where}")
    plain = {name: value for name, value in record.items() if name not in ("only_row", "version", "release")}
    read_record(Witness, plain, f"witness in {where}")
    types = {one.name: int if one.type == "int" else dict if one.name == "repos" else str for one in fields(Witness)}
    odd = [name for name, value in plain.items() if not isinstance(value, types[name])]
    if odd:
        raise Damage(f"these fields have the wrong type: {', '.join(odd)}", f"witness in {where}", "", "malformed")
    return Witness(**plain)
