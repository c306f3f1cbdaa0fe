"""What a schema is built with: extensions, and the newest migrations that Alembic and Django applied."""

from __future__ import annotations

from psycopg.sql import SQL, Identifier

from lych_checkpoint.database.connection import Connection, rows

#: These facts only inform: nobody waits long for a table that a migration has locked.
_WAIT = "500ms"


def hurry(connection: Connection) -> None:
    """Let no statement of this session wait long for a lock."""
    rows(connection, "SELECT set_config('lock_timeout', %s, false)", (_WAIT,))


def extensions(connection: Connection) -> dict[str, str]:
    """Return the version of each installed extension."""
    return {str(name): str(version) for name, version in rows(
        connection, "SELECT extname::text, extversion FROM pg_extension ORDER BY 1")}


def migrations(connection: Connection) -> dict[str, list[str]]:
    """Return the newest migrations, by tool and place: Alembic's heads by schema, Django's last one by app.

    Tables of other names, and those that the role may not read, are not seen.
    """
    found: dict[str, list[str]] = {}
    for schema, table in _tables(connection):
        place = Identifier(schema, table)
        if table == "alembic_version":
            heads = rows(connection, SQL("SELECT version_num::text FROM {} ORDER BY 1").format(place))
            found[f"alembic {schema}"] = [str(head) for (head,) in heads]
        else:
            last = rows(connection, SQL(
                "SELECT DISTINCT ON (app) app::text, name::text FROM {} ORDER BY app, id DESC").format(place))
            found |= {f"django {schema} {app}": [str(name)] for app, name in last}
    return found


def _tables(connection: Connection) -> list[tuple[str, str]]:
    """Return schema and name of each table of those tools that has the columns it should have."""
    return [(str(schema), str(table)) for schema, table in rows(connection, """
        SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'p')
            AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
            AND (c.relname, a.attname) IN (('alembic_version', 'version_num'), ('django_migrations', 'app'),
                                           ('django_migrations', 'name'), ('django_migrations', 'id'))
        GROUP BY 1, 2, c.relname HAVING count(*) = CASE c.relname WHEN 'alembic_version' THEN 1 ELSE 3 END
        ORDER BY 1, 2""")]
