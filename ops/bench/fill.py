"""A soul of a size: rows that neither PostgreSQL nor Btrfs makes smaller, written without WAL."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg

from ops.servers.postgres import PostgresNode

#: A soul that is filled without WAL takes half the disk.
QUIET = {"wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "4GB", "fsync": "on"}
_ROW_BYTES = 8000
_SCALE, _SCALE_GB = 7, 0.1


def fill(postgres: PostgresNode, gb: float, *, pgbench: bool = False) -> None:
    """Fill `cold` in the database `soul`, and start the server again so that it can be copied.

    It was started with `QUIET`. With ``pgbench`` 0.1 GB are pgbench's tables.
    """
    if pgbench:
        postgres.run("pgbench", "-i", "-q", "-s", str(_SCALE), "soul")
        gb = max(0.0, gb - _SCALE_GB)
    count = round(gb * 1e9 / (_ROW_BYTES + 100))
    with psycopg.connect(postgres.url("soul")) as connection:
        connection.execute("create table cold (id int, words text)")
        connection.execute("alter table cold alter words set storage external")
        connection.execute(f"insert into cold select n, repeat(md5(n::text), {_ROW_BYTES // 32}) "
                           f"from generate_series(1, {count}) n")
        connection.execute("create table warm (id serial primary key, at timestamptz default now())")
    for name, value in (("wal_level", "replica"), ("max_wal_senders", "10")):
        postgres.run("psql", "-qc", f"alter system set {name} = '{value}'", "soul")
    postgres.stop()
    postgres.start()


def room_gb() -> float:
    """Return the free room where `place` will be."""
    return shutil.disk_usage(Path(os.environ.get("LYCH_BENCH_DIR", "/tmp"))).free / 1e9
