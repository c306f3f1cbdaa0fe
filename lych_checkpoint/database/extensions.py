"""Extensions: which are installed, which this server could install, and whether their libraries are there."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg.sql import SQL, Identifier, Literal

from lych_checkpoint.database.connection import Connection, place, rows
from lych_checkpoint.errors import Refused

#: An extension's name, version and schema.
Extension = tuple[str, str, str]


def installed(connection: Connection) -> list[Extension]:
    """Return the extensions of this database, in the order in which they were made."""
    return [(name, version, schema) for name, version, schema in rows(connection, """
        SELECT e.extname::text, e.extversion, n.nspname::text
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.oid""")]


def refuse_unavailable(connection: Connection, wanted: Iterable[Extension]) -> None:
    """Make sure that this server can install each extension in that version.

    Raises:
        Refused: it cannot (code ``extension-missing``).
    """
    known = {(name, version) for name, version in rows(connection, """
        SELECT name::text, version FROM pg_available_extension_versions
        UNION SELECT extname::text, extversion FROM pg_extension""")}
    for name, version, _ in wanted:
        if (name, version) not in known:
            others = ", ".join(sorted(one for other, one in known if other == name))
            raise Refused(f"the data need the extension {name} {version}; the server has {others or 'none of it'}",
                          place(connection), f"install the package that brings {name} {version}", "extension-missing")


def in_other_versions(connection: Connection, wanted: Iterable[Extension]) -> bool:
    """Whether CREATE EXTENSION, which a dump calls without a version, would make another version of any."""
    return any(rows(connection, """
        SELECT 1 FROM pg_available_extensions
        WHERE name = %s AND default_version IS DISTINCT FROM %s AND installed_version IS DISTINCT FROM %s""",
        (name, version, version)) for name, version, _ in wanted)


def make(connection: Connection, wanted: Iterable[Extension]) -> None:
    """Install each extension in its version; one that is there is left."""
    for name, version, schema in wanted:
        rows(connection, SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {} VERSION {}").format(
            Identifier(name), Identifier(schema), Literal(version)))


def refuse_without_library(connection: Connection) -> None:
    """Make sure that the library of each C function is there. A role that may not look at files is told nothing.

    Raises:
        Refused: one is not (code ``extension-missing``).
    """
    if not rows(connection, "SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper"):
        return
    # Looked for, not loaded: some may be loaded at the server's start only, and end the session else.
    missing = rows(connection, """
        WITH home AS (SELECT setting AS path FROM pg_config WHERE name = 'PKGLIBDIR'),
        places AS (
            SELECT replace(place, '$libdir', path) AS place
            FROM home, unnest(string_to_array(current_setting('dynamic_library_path'), ':')) place),
        used AS (
            SELECT DISTINCT coalesce('extension ' || e.extname, 'function ' || p.oid::regprocedure) AS what, p.probin
            FROM pg_proc p
            LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            LEFT JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
            WHERE p.probin IS NOT NULL AND (p.oid >= 16384 OR e.oid IS NOT NULL))
        SELECT what, probin FROM used WHERE NOT EXISTS (
            SELECT FROM (
                SELECT replace(probin, '$libdir', path) AS file FROM home WHERE probin LIKE '%%/%%'
                UNION ALL SELECT place || '/' || probin FROM places WHERE probin NOT LIKE '%%/%%') files,
                unnest(ARRAY['', '.so']) suffix
            WHERE (pg_stat_file(file || suffix, true)).size IS NOT NULL)
        ORDER BY 1""", ())
    if missing:
        what, library = missing[0]
        raise Refused(f"the {what} needs the library {library}, which the server lacks", place(connection),
                      "install the package that brings it", "extension-missing")
