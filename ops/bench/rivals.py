"""What people do without us, on the same soul and workers: stop, pg_dump, start; pg_basebackup; pgBackRest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import redis
from celery import Celery

from ops.bench.fill import QUIET, fill
from ops.bench.ground import Ground
from ops.bench.record import Row
from ops.servers.celery import CeleryProcess
from ops.servers.child import ServerError
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import USER, PostgresNode

STOPPED = "stop workers, pg_dump, start workers: hold"
_DONE = "bench:done"
_PGBACKREST, _RELEASE_BIN = Path("/usr/bin/pgbackrest"), Path("/usr/lib/postgresql/15/bin")
#: Without an archive a backup is less than it could be, which is to its advantage here.
_BACKUP = ("--no-archive-check", "--start-fast", "--compress-type=lz4", "--process-max=2")


def measure(ground: Ground, workers: list[CeleryProcess], names: list[str], gb: float, n: int) -> list[Row]:
    """Stop, dump and start ``workers`` ``n`` times, then back the server up while they run; the list's are new then.

    The hold is from the stop to the end of the first task of the new workers. What backs up running servers holds
    nobody, and knows nothing of the code that the data belongs to.
    """
    variant, holds, dumps = f"{gb:g} GB", [], []
    for _ in range(n):
        held_ms, dumped_ms, workers[:] = _stopped(ground, workers, names)
        holds.append(held_ms)
        dumps.append(dumped_ms)
    rows = [Row(STOPPED, variant, tuple(holds)), Row("of it pg_dump", variant, tuple(dumps)),
            Row("pg_basebackup: total", variant, tuple(_base_backup(ground) for _ in range(n)))]
    lacking = next((str(one) for one in (_PGBACKREST, _RELEASE_BIN / "postgres") if not one.exists()), None)
    if lacking is None:
        return rows + _backrests(ground.home, variant, gb, n)
    print(f"pgBackRest is left out: {lacking} is missing (apt-get install pgbackrest postgresql-15)", file=sys.stderr)
    return rows


def _stopped(
    ground: Ground, workers: list[CeleryProcess], names: list[str]
) -> tuple[float, float, list[CeleryProcess]]:
    began_s = time.time()
    for one in workers:
        one.ask_to_stop()
    for one in workers:
        one.wait_exit()
    dump_s = time.time()
    target = ground.home / "rival.dump"
    ground.postgres.run("pg_dump", "-Fc", "-Z1", "-f", target, "soul", timeout_s=900)
    dumped_ms = (time.time() - dump_s) * 1000
    with redis.Redis.from_url(ground.broker.url) as client, \
            Celery("bench", broker=ground.broker.url, set_as_current=False) as app:
        client.delete(_DONE)
        app.send_task("done", args=[_DONE], ignore_result=True)
        started = ground.start_workers(names, pool="prefork")
        found = client.blpop([_DONE], timeout=60)
    target.unlink()
    if found is None:
        raise ServerError("the new workers have run no task within 60 s")
    return (float(found[1]) - began_s) * 1000, dumped_ms, started


def _base_backup(ground: Ground) -> float:
    target = ground.home / "rival-base"
    began_s = time.perf_counter()
    ground.postgres.run("pg_basebackup", "-D", target, "-c", "fast", "-X", "stream", "--no-manifest", timeout_s=900)
    took_s = time.perf_counter() - began_s
    shutil.rmtree(target)
    return took_s * 1000


def _backrests(home: Path, variant: str, gb: float, n: int) -> list[Row]:
    """Back up a server of its own with as much in it: Debian's pgBackRest knows Debian's PostgreSQL, and no later."""
    variant, rows = f"{variant}, PostgreSQL 15", []
    (home / "rival-server").mkdir(mode=0o711)
    make_pgdata_subvolume(home / "rival-server" / "pgdata")
    with PostgresNode.start_new(home / "rival-server", pg_bin=_RELEASE_BIN, options=QUIET) as postgres:
        postgres.run("createdb", "soul")
        fill(postgres, gb, pgbench=True)
        _pgbackrest(home, postgres, "stanza-create")
        for kind in ("full", "incr"):
            samples = []
            for _ in range(n):
                postgres.run("pgbench", "-n", "-c", "2", "-t", "1000", "soul")
                began_s = time.perf_counter()
                _pgbackrest(home, postgres, "backup", f"--type={kind}", *_BACKUP)
                samples.append((time.perf_counter() - began_s) * 1000)
            rows.append(Row(f"pgBackRest {kind}: total", variant, tuple(samples)))
    return rows


def _pgbackrest(home: Path, postgres: PostgresNode, *arguments: str) -> None:
    repository = home / "rival-pgbackrest"
    repository.mkdir(exist_ok=True)
    options = {
        "stanza": "bench", "repo1-path": repository, "log-path": repository, "lock-path": repository,
        "pg1-path": postgres.pgdata, "pg1-port": postgres.port, "pg1-socket-path": postgres.socket_directory,
        "pg1-user": USER, "pg1-database": "soul",
    }
    done = subprocess.run(
        [_PGBACKREST, *(f"--{name}={value}" for name, value in options.items()), *arguments],
        check=False, capture_output=True, text=True, timeout=900, cwd="/",
        env={**os.environ, **postgres.client_environment()},
    )
    if done.returncode:
        raise ServerError(f"pgbackrest {arguments[0]}: {(done.stdout + done.stderr).strip()[-600:]}")
