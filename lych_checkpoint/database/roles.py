"""The roles that a database's objects, grants and settings name: they are the server's, and no dump has them.

A restore never changes a role that lives, for other databases share it: it refuses one that is missing, and says what
differs of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from psycopg.sql import SQL, Composable, Identifier, Literal

from lych_checkpoint.database.connection import Connection, place, rows
from lych_checkpoint.errors import Refused
from lych_checkpoint.records import read_record

#: Settings whose text is already a list of quoted names: taken as one literal they would be quoted twice.
LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
         "temp_tablespaces", "unix_socket_directories")
_ATTRIBUTES = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role without its password: attributes such as LOGIN, groups, members, and its settings as ``name=value``."""

    name: str
    attributes: tuple[str, ...]
    connections: int
    member_of: tuple[str, ...]
    members: tuple[str, ...]
    settings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read back what `as_json` gave.

        Raises:
            Damage: fields are missing or unknown.
        """
        plain = dict(read_record(cls, record, "settings.json: role"))
        for name in ("attributes", "member_of", "members", "settings"):
            plain[name] = tuple(plain[name])
        return cls(**plain)

    def made_by(self, connection: Connection) -> str:
        """Return the statements that make it."""
        me = Identifier(self.name)
        parts: list[Composable] = [SQL("CREATE ROLE {}{}").format(me, SQL("").join(
            SQL(" " + one) for one in _ATTRIBUTES if one in self.attributes))]
        parts += [SQL("GRANT {} TO {}").format(Identifier(group), me) for group in self.member_of]
        parts += [SQL("GRANT {} TO {}").format(me, Identifier(member)) for member in self.members]
        for setting in self.settings:
            name, _, value = setting.partition("=")
            how = SQL(value) if name.lower() in LISTS else Literal(value)
            parts.append(SQL("ALTER ROLE {} SET {} TO {}").format(me, Identifier(*name.split(".")), how))
        return SQL("; ").join(parts).as_string(connection)


def read(connection: Connection, oid: int) -> tuple[Role, ...]:
    """Return the roles that the database ``oid`` names, from any database of its server."""
    return _roles(connection, [name for (name,) in rows(connection, """
        SELECT rolname::text FROM pg_roles r
        WHERE NOT starts_with(r.rolname, 'pg_') AND r.oid IN (
            SELECT refobjid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass
                AND (dbid = %(oid)s::bigint::oid
                     OR (classid = 'pg_database'::regclass AND objid = %(oid)s::bigint::oid))
            UNION SELECT datdba FROM pg_database WHERE oid = %(oid)s::bigint::oid
            UNION SELECT setrole FROM pg_db_role_setting WHERE setdatabase = %(oid)s::bigint::oid)""",
        {"oid": oid})])


def refuse_missing(connection: Connection, wanted: Iterable[Role]) -> None:
    """Make sure that the server has each role.

    Raises:
        Refused: it lacks some (code ``roles-missing``); the statements that make them are the mend.
    """
    there = {name for (name,) in rows(connection, "SELECT rolname::text FROM pg_roles")}
    lacking = [role for role in wanted if role.name not in there]
    if lacking:
        raise Refused(f"the data name the role {', '.join(role.name for role in lacking)}, which the server lacks",
                      place(connection), "; ".join(role.made_by(connection) for role in lacking), "roles-missing")


def differences(connection: Connection, wanted: Iterable[Role]) -> list[str]:
    """Return in sentences what of those roles is not as it was."""
    then = {role.name: asdict(role) for role in wanted}
    return [f"the role {now.name} is not as it was, and is left so: {field} was {_shown(was)}, is {_shown(present)}"
            for now in _roles(connection, list(then)) for field, present in asdict(now).items()
            if present != (was := then[now.name][field])]


def _roles(connection: Connection, names: list[str]) -> tuple[Role, ...]:
    found = rows(connection, """
        SELECT r.rolname::text, ARRAY[r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
                r.rolreplication, r.rolbypassrls], r.rolconnlimit,
            ARRAY(SELECT DISTINCT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                  WHERE m.member = r.oid ORDER BY 1),
            ARRAY(SELECT DISTINCT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.member
                  WHERE m.roleid = r.oid ORDER BY 1),
            ARRAY(SELECT unnest(r.rolconfig) ORDER BY 1)
        FROM pg_roles r WHERE r.rolname = ANY(%s) ORDER BY 1""", (names,))
    return tuple(Role(
        name=name, attributes=tuple(one for one, has in zip(_ATTRIBUTES, flags, strict=True) if has),
        connections=connections, member_of=tuple(groups), members=tuple(members), settings=tuple(settings),
    ) for name, flags, connections, groups, members, settings in found)


def _shown(value: object) -> str:
    return (", ".join(value) or "nothing") if isinstance(value, tuple) else str(value)
