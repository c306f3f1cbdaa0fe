"""What a role may do in a database: asked before a freeze, so that nobody hears of it in one."""

from __future__ import annotations

from lych_checkpoint.database.connection import Connection, rows

#: Oids below are the server's own.
_OURS = """c.oid >= 16384 AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"""


def unreadable_sequences(connection: Connection) -> list[str]:
    """Return the sequences whose value this role may not read."""
    return [name for (name,) in rows(connection, """
        SELECT format('sequence %I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't'
            AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) ORDER BY 1""")]


def unreadable(connection: Connection) -> list[str]:
    """Return the tables and large objects that this role may not read: pg_dump fails at the first."""
    return [name for (name,) in rows(connection, f"""
        SELECT format('table %I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND {_OURS}
            AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
        UNION ALL
        SELECT 'large object ' || m.oid FROM pg_largeobject_metadata m
        WHERE NOT current_setting('lo_compat_privileges')::bool AND NOT pg_has_role(m.lomowner, 'USAGE')
            AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                            AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
        ORDER BY 1""")]  # noqa: S608 - a constant


def filtered(connection: Connection) -> list[str]:
    """Return the tables of which row security shows this role some rows, or none."""
    return [name for (name,) in rows(connection, f"""
        SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND {_OURS} AND row_security_active(c.oid) ORDER BY 1""")]  # noqa: S608


def unlockable(connection: Connection) -> list[str]:
    """Return the tables that this role may not keep others from writing to."""
    return [name for (name,) in rows(connection, f"""
        SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND {_OURS}
            AND NOT (has_schema_privilege(n.oid, 'USAGE')
                     AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')) ORDER BY 1""")]  # noqa: S608


def foreign(connection: Connection) -> list[tuple[str, str]]:
    """Return what this role could not give back: each thing in words, and the role whose owner's rights it lacks."""
    # Since 15 `public` belongs to whoever owns the database, and a dump gives it back to anybody else.
    moved = "true" if connection.info.server_version >= 150_000 else "false"
    return [(what, str(owner)) for what, owner in rows(connection, f"""
        SELECT what, pg_get_userbyid(owner) FROM (
            SELECT format('%I.%I', n.nspname, c.relname), c.relowner
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {_OURS}
            UNION ALL
            SELECT format('schema %I', nspname), nspowner FROM pg_namespace
            WHERE (oid >= 16384 AND NOT starts_with(nspname, 'pg_')) OR (nspname = 'public' AND {moved})
            UNION ALL
            SELECT format('function %s', p.oid::regprocedure), proowner FROM pg_proc p
            WHERE p.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
            UNION ALL
            SELECT 'large object ' || oid, lomowner FROM pg_largeobject_metadata
        ) AS owned (what, owner)
        WHERE NOT pg_has_role(owner, 'USAGE') ORDER BY 1""")]  # noqa: S608


def out_of_reach(connection: Connection) -> list[str]:
    """Return the settings of this database, and of roles in it, that this role may not make again."""
    admin = "pg_has_role(r.oid, 'MEMBER WITH ADMIN OPTION')" if connection.info.server_version >= 160_000 else "true"
    return [name for (name,) in rows(connection, f"""
        SELECT split_part(line, '=', 1) || coalesce(' of role ' || r.rolname, '')
        FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) line JOIN pg_roles me ON me.rolname = current_user
        JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
        LEFT JOIN pg_roles r ON r.oid = s.setrole
        LEFT JOIN pg_settings p ON p.name = split_part(line, '=', 1)
        WHERE NOT me.rolsuper AND (p.context = 'superuser' OR NOT (
            s.setrole IN (0, me.oid) OR (me.rolcreaterole AND NOT r.rolsuper AND {admin}))) ORDER BY 1""")]  # noqa: S608


def closed_tablespaces(connection: Connection) -> list[str]:
    """Return the tablespace of this database, and those of its tables and indexes, that this role may not use."""
    return [name for (name,) in rows(connection, """
        SELECT t.spcname::text FROM pg_tablespace t WHERE NOT has_tablespace_privilege(t.oid, 'CREATE') AND t.oid IN (
            SELECT reltablespace FROM pg_class WHERE oid >= 16384
            UNION SELECT dattablespace FROM pg_database WHERE datname = current_database() AND dattablespace <>
                (SELECT dattablespace FROM pg_database WHERE datname = 'template0')) ORDER BY 1""")]


def untrusted_extensions(connection: Connection) -> list[str]:
    """Return the installed extensions that this role may not install."""
    return [name for (name,) in rows(connection, """
        SELECT e.extname::text FROM pg_extension e JOIN pg_available_extension_versions v
            ON v.name = e.extname AND v.version = e.extversion
        WHERE e.extname <> 'plpgsql' AND v.superuser AND NOT v.trusted
            AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) ORDER BY 1""")]
