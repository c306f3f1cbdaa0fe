"""Facts about the server behind a connection that decide what can be captured."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from lych_checkpoint.database.connection import Connection, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the server says of itself and of our role in it.

    ``data_directory`` and ``config_file`` are empty where the role may not see them. ``lock_capacity`` is how many
    locks all sessions together can hold. ``checkpointer``: the role may run CHECKPOINT. ``prepared`` names the
    prepared transactions, ``prepared_here`` those of this database.
    """

    version: int
    database: str
    role: str
    superuser: bool
    checkpointer: bool
    creates_databases: bool
    owns_database: bool
    in_recovery: bool
    fsync: bool
    checksums: bool
    data_directory: str
    config_file: str
    lock_capacity: int
    tables: int
    prepared: tuple[str, ...]
    prepared_here: tuple[str, ...]
    neighbours: tuple[str, ...]

    @property
    def major(self) -> int:
        """The major version, such as 15 or 18."""
        return self.version // 10_000


def describe(connection: Connection) -> Server:
    """Ask the server."""
    one = rows(connection, """
        SELECT current_setting('server_version_num')::int, current_database()::text, current_user::text, r.rolsuper,
            r.rolsuper OR r.rolcreatedb, pg_has_role(current_user, d.datdba, 'MEMBER'), pg_is_in_recovery(),
            current_setting('fsync')::bool, current_setting('data_checksums')::bool,
            coalesce((SELECT setting FROM pg_settings WHERE name = 'data_directory'), ''),
            coalesce((SELECT setting FROM pg_settings WHERE name = 'config_file'), ''),
            current_setting('max_locks_per_transaction')::int
                * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int),
            (SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384)
        FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()""")[0]
    may_checkpoint = bool(rows(connection, """
        SELECT coalesce(bool_or(pg_has_role(current_user, oid, 'USAGE')), false)
        FROM pg_roles WHERE rolname = 'pg_checkpoint'""")[0][0])
    prepared = rows(connection, """
        SELECT gid || ' in ' || database, database = current_database() FROM pg_prepared_xacts ORDER BY prepared""")
    neighbours = rows(connection, """
        SELECT datname::text FROM pg_database
        WHERE NOT datistemplate AND datname <> current_database() ORDER BY 1""")
    return Server(
        version=one[0], database=one[1], role=one[2], superuser=one[3], checkpointer=one[3] or may_checkpoint,
        creates_databases=one[4], owns_database=one[5], in_recovery=one[6], fsync=one[7], checksums=one[8],
        data_directory=one[9], config_file=one[10], lock_capacity=one[11], tables=one[12],
        prepared=tuple(name for name, _ in prepared), prepared_here=tuple(name for name, here in prepared if here),
        neighbours=tuple(row[0] for row in neighbours),
    )


def system_identifier(connection: Connection) -> str:
    """Return the cluster's identifier, which every physical copy shares; empty where the role may not see it."""
    try:
        return str(rows(connection, "SELECT system_identifier FROM pg_control_system()")[0][0])
    except psycopg.errors.InsufficientPrivilege:
        return ""


def identity(connection: Connection) -> str:
    """Return ``cluster/oid`` of this database, which no copy made by dump, restore or CREATE DATABASE shares.

    The cluster is empty where the role may not see it.
    """
    oid = rows(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")[0][0]
    return f"{system_identifier(connection)}/{oid}"


def same(one: str, other: str) -> bool:
    """Whether two identities are of one database, as far as the roles that read them could see."""
    (cluster, oid), (other_cluster, other_oid) = one.split("/"), other.split("/")
    return oid == other_oid and (cluster == other_cluster or "" in (cluster, other_cluster))


def materialized_views(connection: Connection) -> tuple[str, ...]:
    """Return the materialized views of this database that hold rows."""
    found = rows(connection, """
        SELECT schemaname || '.' || matviewname FROM pg_matviews WHERE ispopulated ORDER BY 1""")
    return tuple(row[0] for row in found)


def checkpoint_now(connection: Connection) -> None:
    """Run CHECKPOINT: what is on disk then need not be recovered."""
    rows(connection, "CHECKPOINT")
