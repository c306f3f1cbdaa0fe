"""What the least of each driver's window costs with nothing around it, in milliseconds, on a soul that is written."""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from ops.bench.ground import Ground
from ops.servers.child import ServerError, end

_SNAP_CREATE_V2 = 0x50009417  # _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
_READ_ONLY = 1 << 1
_FICLONE = 0x40049409
_FLUSH = """
begin; set local synchronous_commit to local; select pg_logical_emit_message(true, 'floor', 'flush'); commit
"""
_HOLDS_LOCKS = """
select exists (select from pg_locks l join pg_stat_activity a using (pid)
               where application_name = 'pg_dump' and granted and relation = 'pgbench_accounts'::regclass)
"""


def snapshot(ground: Ground) -> float:
    """Take a read-only snapshot of PGDATA with one ioctl.

    Flushed just before, as a driver may do before its freeze, so that the floor is the ioctl and not the disk.
    """
    ground.postgres.run("psql", "-qc", "checkpoint", "soul")
    subprocess.run(["sync", "-f", ground.postgres.pgdata], check=True)
    target = ground.home / f"floor-{secrets.token_hex(4)}"
    source = os.open(ground.postgres.pgdata, os.O_RDONLY)
    parent = os.open(ground.home, os.O_RDONLY)
    try:
        name = target.name.encode()
        arguments = ctypes.create_string_buffer(struct.pack("=qQQ32s4040s", source, 0, _READ_ONLY, b"", name))
        began_s = time.perf_counter()
        fcntl.ioctl(parent, _SNAP_CREATE_V2, arguments)
        took_s = time.perf_counter() - began_s
    finally:
        os.close(source)
        os.close(parent)
    subprocess.run(["btrfs", "subvolume", "delete", target], check=True, capture_output=True)
    return took_s * 1000


def point(ground: Ground) -> float:
    """Name a restore point over an open connection that has named one before, and flush it to the disk."""
    with psycopg.connect(ground.postgres.url("soul"), autocommit=True) as connection:
        took_s = 0.0
        for _ in range(2):
            began_s = time.perf_counter()
            connection.execute("select pg_create_restore_point('floor')")
            connection.execute(_FLUSH)
            took_s = time.perf_counter() - began_s
    return took_s * 1000


def unflushed_point(ground: Ground) -> float:
    """Name a restore point over an open connection that has named one before; it lies in the server's memory only."""
    with psycopg.connect(ground.postgres.url("soul"), autocommit=True) as connection:
        connection.execute("select pg_create_restore_point('floor')")
        began_s = time.perf_counter()
        connection.execute("select pg_create_restore_point('floor')")
        return (time.perf_counter() - began_s) * 1000


def locks(ground: Ground) -> float:
    """Export a snapshot and start pg_dump on it, until it holds its locks."""
    url = ground.postgres.url("soul")
    with psycopg.connect(url) as exporter, psycopg.connect(url, autocommit=True) as watcher:
        began_s = time.perf_counter()
        exporter.execute("set transaction isolation level repeatable read, read only")
        row = exporter.execute("select pg_export_snapshot()").fetchone()
        assert row is not None
        pg_dump = ground.postgres.pg_bin / "pg_dump"
        argv: list[str | Path] = [pg_dump, "-Fc", f"--snapshot={row[0]}", "-f", "/dev/null", "soul"]
        child = subprocess.Popen(argv, env={**os.environ, **ground.postgres.client_environment()},
                                 stderr=subprocess.DEVNULL)
        try:
            while watcher.execute(_HOLDS_LOCKS).fetchone() != (True,):
                if child.poll() is not None:
                    raise ServerError(f"pg_dump ended with {child.returncode} before it held its locks")
            return (time.perf_counter() - began_s) * 1000
        finally:
            end(child)


def clones(ground: Ground) -> float:
    """Clone every file of PGDATA, pg_wal's apart, in backup mode."""
    target = ground.home / f"floor-{secrets.token_hex(4)}"
    with psycopg.connect(ground.postgres.url("soul"), autocommit=True) as connection:
        connection.execute("select pg_backup_start('floor', true)")
        began_s = time.perf_counter()
        for root, folders, files in os.walk(ground.postgres.pgdata):
            folders[:] = [one for one in folders if one != "pg_wal"]
            into = target / os.path.relpath(root, ground.postgres.pgdata)
            into.mkdir()
            for name in files:
                with suppress(FileNotFoundError), open(f"{root}/{name}", "rb") as source, \
                        (into / name).open("wb") as copy:
                    fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
        took_s = time.perf_counter() - began_s
        connection.execute("select pg_backup_stop(false)")
    shutil.rmtree(target)
    return took_s * 1000
