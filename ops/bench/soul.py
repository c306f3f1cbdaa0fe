"""The window (drained to thaw rung) of each driver at 0.1 GB beside bare floors, pgbench writing until the freeze."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
from celery import Celery

from ops.bench.ground import Ground, place, rounds
from ops.bench.record import Row, header, report
from ops.servers.child import ServerError, end
from ops.servers.filesystems import is_btrfs

_SCALE = 7  # about 15 MB each
_SNAP_CREATE_V2 = 0x50009417  # _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
_READ_ONLY = 1 << 1
_HOLDS_LOCKS = """
select exists (select from pg_locks l join pg_stat_activity a using (pid)
               where application_name = 'pg_dump' and granted and relation = 'pgbench_accounts'::regclass)
"""
_FLOORS = {"btrfs": "bare ioctl", "dump": "bare pg_dump to its locks"}


def measure() -> None:
    """Measure dump, and btrfs where the directory lies on one, each beside its floor, in turns; and report."""
    n = rounds(20)
    with place() as home, ExitStack() as stack:
        ground = Ground(home, stack)
        ground.postgres.run("pgbench", "-i", "-q", "-s", str(_SCALE), "soul")
        head = header(home, ground.versions())
        drivers = ["dump", *(["btrfs"] if is_btrfs(home) else [])]
        if len(drivers) == 1:
            print(f"btrfs is left out: {home} is on {head['file_system']}; run as root or set LYCH_BENCH_DIR",
                  file=sys.stderr)
        ground.start_workers(["one", "two"], pool="prefork")
        for _ in range(2):
            Celery("bench", broker=ground.broker.url).send_task("churn")
        windows: dict[str, list[float]] = {driver: [] for driver in drivers}
        holds: dict[str, list[float]] = {driver: [] for driver in drivers}
        floors: dict[str, list[float]] = {driver: [] for driver in drivers}
        for number in range(n + 1):
            for driver in drivers:
                window = ground.create(driver)["window"]
                floor = _snapshot(ground, number) if driver == "btrfs" else _export(ground)
                if number:  # the first round warms caches
                    windows[driver].append(window["capture_ms"] + window["thaw_ms"])
                    holds[driver].append(window["hold_ms"])
                    floors[driver].append(floor)
        rows = []
        for driver in drivers:
            rows += [
                Row(_FLOORS[driver], driver, tuple(floors[driver])),
                Row("window", driver, tuple(windows[driver]), floor=_FLOORS[driver]),
                Row("hold, with the drain of running tasks", driver, tuple(holds[driver])),
            ]
        head["database_bytes"] = _size(ground)
        report("soul", head, rows)


def _snapshot(ground: Ground, number: int) -> float:
    """Take a read-only snapshot of PGDATA with one ioctl while pgbench writes; return its milliseconds.

    Flushed just before, as a driver may do before its freeze, so that the floor is the ioctl and not the disk.
    """
    ground.postgres.run("psql", "-qc", "checkpoint", "soul")
    subprocess.run(["sync", "-f", ground.postgres.pgdata], check=True)
    target = ground.home / f"floor-{number}"
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


def _export(ground: Ground) -> float:
    """Export a snapshot and start pg_dump on it; return the milliseconds until it holds its locks."""
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


def _size(ground: Ground) -> int:
    with psycopg.connect(ground.postgres.url("soul")) as connection:
        row = connection.execute("select pg_database_size('soul')").fetchone()
        return int(row[0]) if row else 0
