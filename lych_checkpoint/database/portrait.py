"""What belongs to a database and a plain pg_dump forgets: encoding, locale, owner, settings, grants."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from psycopg.sql import SQL, Composable, Identifier, Literal

from lych_checkpoint.database.connection import Connection, atomic, rows
from lych_checkpoint.database.roles import LISTS
from lych_checkpoint.records import read_record

_PRIVILEGES = {"CREATE": SQL("CREATE"), "CONNECT": SQL("CONNECT"), "TEMPORARY": SQL("TEMPORARY")}
_PROVIDERS = {"c": SQL("libc"), "i": SQL("icu"), "b": SQL("builtin")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """A database without its content.

    ``settings`` holds (role or empty, name, value); ``grants`` holds (role or empty for PUBLIC, privilege, whether
    it may be passed on), or is None where nothing was ever granted or revoked. ``provider`` is pg_database's letter.
    """

    owner: str
    encoding: str
    provider: str
    collate: str
    ctype: str
    locale: str
    rules: str
    tablespace: str
    connections: int
    comment: str
    settings: tuple[tuple[str, str, str], ...]
    grants: tuple[tuple[str, str, bool], ...] | None

    def as_json(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read back what `as_json` gave.

        Raises:
            Damage: fields are missing or unknown.
        """
        plain = dict(read_record(cls, record, "settings.json"))
        plain["settings"] = tuple((role, name, value) for role, name, value in plain["settings"])
        if plain["grants"] is not None:
            plain["grants"] = tuple((role, privilege, passed) for role, privilege, passed in plain["grants"])
        return cls(**plain)


def read(connection: Connection, oid: int) -> Portrait:
    """Read the portrait of the database ``oid``, from any database of its server."""
    # Columns came and were renamed between 13 and 18, so the row is asked for whole.
    row, owner, encoding, tablespace, comment = rows(connection, """
        SELECT to_jsonb(d), pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text, t.spcname::text,
            coalesce(shobj_description(d.oid, 'pg_database'), '')
        FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.oid = %s::bigint::oid""",
        (oid,))[0]
    settings = rows(connection, """
        SELECT coalesce(r.rolname::text, ''), line FROM pg_db_role_setting s
        LEFT JOIN pg_roles r ON r.oid = s.setrole CROSS JOIN unnest(s.setconfig) line
        WHERE s.setdatabase = %s::bigint::oid ORDER BY 1, 2""", (oid,))
    grants = None if row["datacl"] is None else tuple(rows(connection, """
        SELECT coalesce(r.rolname::text, ''), a.privilege_type::text, a.is_grantable
        FROM pg_database d CROSS JOIN aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE d.oid = %s::bigint::oid ORDER BY 1, 2""", (oid,)))
    return Portrait(
        owner=owner, encoding=encoding, provider=row.get("datlocprovider") or "c", collate=row["datcollate"],
        ctype=row["datctype"], locale=row.get("datlocale") or row.get("daticulocale") or "",
        rules=row.get("daticurules") or "", tablespace=tablespace, connections=row["datconnlimit"], comment=comment,
        settings=tuple((role, *line.split("=", 1)) for role, line in settings),
        grants=grants,
    )


def create(connection: Connection, name: str, portrait: Portrait) -> None:
    """Make an empty database of this encoding, locale, owner and place."""
    options: list[Composable] = [
        SQL("TEMPLATE template0"), SQL("OWNER {}").format(Identifier(portrait.owner)),
        SQL("ENCODING {}").format(Literal(portrait.encoding)), SQL("LC_COLLATE {}").format(Literal(portrait.collate)),
        SQL("LC_CTYPE {}").format(Literal(portrait.ctype)),
    ]
    if not rows(connection, """
            SELECT 1 FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace
            WHERE d.datname = 'template0' AND t.spcname = %s""", (portrait.tablespace,)):
        # Where the template lies anybody may make a database, but only a superuser may say so.
        options.append(SQL("TABLESPACE {}").format(Identifier(portrait.tablespace)))
    if portrait.provider != "c":
        options.append(SQL("LOCALE_PROVIDER {}").format(_PROVIDERS[portrait.provider]))
        word = SQL("ICU_LOCALE") if portrait.provider == "i" else SQL("BUILTIN_LOCALE")
        options.append(SQL("{} {}").format(word, Literal(portrait.locale)))
    if portrait.rules:
        options.append(SQL("ICU_RULES {}").format(Literal(portrait.rules)))
    rows(connection, SQL("CREATE DATABASE {} {}").format(Identifier(name), SQL(" ").join(options)))


def apply(connection: Connection, name: str, portrait: Portrait) -> None:
    """Give the database ``name`` the portrait's settings, grants, limit and comment."""
    database = Identifier(name)
    with atomic(connection):
        for role, setting, value in portrait.settings:
            whom = SQL("ROLE {} IN DATABASE {}").format(Identifier(role), database) if role else (
                SQL("DATABASE {}").format(database))
            if setting.lower() in LISTS:
                rows(connection, "SELECT set_config(%s, %s, true)", (setting, value))
                how: Composable = SQL("FROM CURRENT")
            else:
                how = SQL("TO {}").format(Literal(value))
            rows(connection, SQL("ALTER {} SET {} {}").format(whom, Identifier(*setting.split(".")), how))
        if portrait.grants is not None:
            rows(connection, SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(
                database, Identifier(portrait.owner)))
            for role, privilege, passed in portrait.grants:
                rows(connection, SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                    _PRIVILEGES[privilege], database, Identifier(role) if role else SQL("PUBLIC"),
                    SQL(" WITH GRANT OPTION") if passed else SQL("")))
        rows(connection, SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, portrait.connections))
        if portrait.comment:
            rows(connection, SQL("COMMENT ON DATABASE {} IS {}").format(database, Literal(portrait.comment)))
