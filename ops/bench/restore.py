"""From the freeze of a restore to the first task of the new workers, by phase; and the gate's time at boot.

LYCH_BENCH_GB (8) is the soul's size for `btrfs`, LYCH_BENCH_DUMP_GB (1) for `dump`, LYCH_BENCH_PITR_GB (8) for
`pitr`, on ext4, where a restore copies every byte; LYCH_BENCH_FILES (2000) the files in each of 20 repositories;
LYCH_BENCH_ROUNDS (3) the restores of each driver. The floor of the gate is one bare `git rev-parse HEAD` per
repository, one after the other. LYCH_BENCH_DOCUMENT=docs/bench-restore.md writes the result for people there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import redis
from celery import Celery

from lych_checkpoint import gate
from ops.bench.fill import QUIET, fill, room_gb
from ops.bench.ground import Ground, make_repository, place, rounds
from ops.bench.record import Row, document, header, report
from ops.servers.celery import CeleryProcess
from ops.servers.child import ServerError
from ops.servers.filesystems import Kind, is_btrfs

_REPOSITORIES = 20
_GATE = (1, 20, 200)
_FIRST, _AT_BOOT = "freeze to first task of the new workers", "gate at boot, aligned"
_GOALS_MS = {(_FIRST, "btrfs"): 5000, (_AT_BOOT, "20 repositories"): 100}
_FLOOR = "bare rev-parse, in turn"
_DONE = "bench:done"
_TEXT = """20 repositories of {files:,} files each, two workers (prefork) under a supervisor that starts them again on
75, a task published every 50 ms. `btrfs` and `dump` on Btrfs, `pitr` on ext4, where a restore copies every byte.
Between checkpoint and restore two repositories and the soul move on. "Freeze to first task" is from the lease written
to the first task that a new worker ended: all that users wait for; workers run while it stages."""
#: By driver: the variable of its soul's size, that size in GB, and the file system.
_SOULS: dict[str, tuple[str, str, Kind]] = {
    "btrfs": ("LYCH_BENCH_GB", "8", "btrfs"), "dump": ("LYCH_BENCH_DUMP_GB", "1", "btrfs"),
    "pitr": ("LYCH_BENCH_PITR_GB", "8", "ext4"),
}


def measure() -> None:
    """Measure the gate, then each driver on a ground of its own, and report."""
    rows: list[Row] = []
    failed: list[str] = []
    sizes = {driver: float(os.environ.get(name, default)) for driver, (name, default, _) in _SOULS.items()}
    with place() as home, ExitStack() as stack:
        ground = Ground(home, stack)
        head = header(home, ground.versions())
        rows += _gates(ground, rounds(20))
    head["soul_gb"], head["repositories"], head["files_each"] = {}, _REPOSITORIES, _files()
    for driver, wanted_gb in sizes.items():
        gb = min(wanted_gb, room_gb() / 4)
        if gb < wanted_gb:
            print(f"{driver}: there is room for {gb:.1f} GB, not for {wanted_gb:g}", file=sys.stderr)
        kind = _SOULS[driver][2]
        with place(size_gb=round(gb * (rounds(3) + 3)) + 8, kind=kind) as home, ExitStack() as stack:
            if driver == "btrfs" and not is_btrfs(home):
                print(f"btrfs is left out: {home} is on {head['file_system']}; run as root or set LYCH_BENCH_DIR",
                      file=sys.stderr)
                continue
            ground = Ground(home, stack, QUIET)
            head["soul_gb"][driver] = round(gb, 2)
            try:
                rows += _restores(ground, driver, gb, rounds(3))
            except ServerError as error:
                failed.append(f"{driver}: {error}")
    report("restore", head, rows)
    goals_ms = {(row.what, row.variant): _GOALS_MS[key] for row in rows
                if (key := (row.what, row.variant.partition(",")[0])) in _GOALS_MS}
    for row in rows:
        goal_ms = goals_ms.get((row.what, row.variant))
        if goal_ms:
            print(f"{row.what}, {row.variant}: p50 {row.p50_ms:.0f} ms, goal {goal_ms} ms"
                  f"{'' if row.p50_ms <= goal_ms else ': missed'}")
    written = os.environ.get("LYCH_BENCH_DOCUMENT")
    if written:
        text = _TEXT.format(files=_files())
        Path(written).write_text(document("restore", "How long a restore takes", text, head, rows, goals_ms))
    if failed:
        raise ServerError("; ".join(failed))


def _gates(ground: Ground, n: int) -> list[Row]:
    """Time `gate.check` as a worker's boot calls it, over more and more repositories."""
    rows = []
    for count in _GATE:
        _extend(ground, count, files=1)
        gate.check(ground.open())
        took, floor = [], []
        directories = [ground.home / "federation" / "core", *(ground.home / "federation" / "extensions").glob("*")]
        for _ in range(n):
            began_s = time.perf_counter()
            verdict = gate.check(ground.open()).verdict
            took.append((time.perf_counter() - began_s) * 1000)
            if verdict != "aligned":
                raise ServerError(f"the gate says {verdict}")
            began_s = time.perf_counter()
            for directory in directories:
                subprocess.run(["git", "-C", directory, "rev-parse", "HEAD"], check=True, capture_output=True)
            floor.append((time.perf_counter() - began_s) * 1000)
        variant = f"{count} repositories"
        rows += [Row(_FLOOR, variant, tuple(floor)), Row(_AT_BOOT, variant, tuple(took), floor=_FLOOR)]
    return rows


def _restores(ground: Ground, driver: str, gb: float, n: int) -> list[Row]:
    """Seal once, then change everything and restore, ``n`` times, under supervised workers and a steady load."""
    print(f"{driver}: filling {gb:.2f} GB", file=sys.stderr)
    fill(ground.postgres, gb)
    _extend(ground, _REPOSITORIES, files=_files())
    # The load's publisher has no plugin, so nobody could tell its messages from those of the future that is gone.
    ground.environment.update(LYCH_DRIVER=driver, LYCH_QUEUE_POLICY="keep")
    phases: dict[str, list[float]] = {}
    with _supervised(ground, ["one", "two"]), _load(ground):
        sealed = ground.lych("create", "--here")["id"]
        for _ in range(n):
            _change(ground)
            began_s = time.perf_counter()
            document = ground.lych("restore", sealed, "--yes")
            whole_ms = (time.perf_counter() - began_s) * 1000
            kept = json.loads((ground.home / "vault" / "notes" / f"restore-{document['safety']}.json").read_text())
            window = kept["freeze"]["window"]
            drained_s = kept["freeze"]["frozen_at"]  # from here to the thaw no task ends
            frozen_s = drained_s - (window["ack_ms"] + window["drain_ms"]) / 1000
            first_ms = (_first_after(ground, drained_s) - frozen_s) * 1000
            for phase, took_ms in document["phases_ms"].items():
                phases.setdefault(f"restore: {phase}", []).append(took_ms)
            phases.setdefault("restore, the whole command", []).append(whole_ms)
            phases.setdefault(_FIRST, []).append(first_ms)
    variant = f"{driver}, {gb:.2g} GB"
    return [Row(what, variant, tuple(samples)) for what, samples in phases.items()]


def _change(ground: Ground) -> None:
    """Move the core and an extension on, and write into the soul."""
    for path in ("core", "extensions/e0"):
        directory = ground.home / "federation" / path
        (directory / "future").write_text(f"{time.time()}\n")
        make_repository(directory)
    with psycopg.connect(ground.postgres.url("soul")) as connection:
        connection.execute("insert into warm select from generate_series(1, 1000)")
    ground.lych("gate")


def _extend(ground: Ground, count: int, *, files: int) -> None:
    """Make extensions until the federation has ``count`` repositories."""
    home = ground.home / "federation" / "extensions"
    home.mkdir(exist_ok=True)
    for number in range(len(list(home.iterdir())), count - 1):
        directory = home / f"e{number}"
        for name in range(files):
            path = directory / f"part{name // 100}" / f"file{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {number} {name}\n" * 20)
        make_repository(directory)


@contextmanager
def _supervised(ground: Ground, names: list[str]) -> Iterator[None]:
    """Keep workers running as a supervisor does: again on 75, not on anything else."""
    ended = threading.Event()

    def keep(name: str) -> None:
        while not ended.is_set():
            with CeleryProcess.worker("bench_app", name, directory=ground.home / "logs", pool="prefork",
                                      concurrency=1, environment=ground.environment) as worker:
                while not ended.wait(0.01) and worker.exit_code is None:
                    pass
                if worker.exit_code not in (75, None):
                    print(f"{name} ended with {worker.exit_code}:\n{worker.text[-2000:]}", file=sys.stderr)
                    return

    threads = [threading.Thread(target=keep, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    try:
        _first_after(ground, 0)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextmanager
def _load(ground: Ground) -> Iterator[None]:
    """Publish a task every 50 ms, as a web process would."""
    ended = threading.Event()

    def publish() -> None:
        with Celery("bench", broker=ground.broker.url, set_as_current=False) as app:
            while not ended.wait(0.05):
                app.send_task("done", args=[_DONE], ignore_result=True)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _first_after(ground: Ground, at_s: float) -> float:
    """Return when the first task ended that ended after ``at_s``; the frozen start none."""
    deadline_s = time.monotonic() + 120
    with redis.Redis.from_url(ground.broker.url) as client, \
            Celery("bench", broker=ground.broker.url, set_as_current=False) as app:
        while time.monotonic() < deadline_s:
            if not at_s:
                app.send_task("done", args=[_DONE], ignore_result=True)
            found = [float(one) for one in client.lrange(_DONE, 0, -1) if float(one) > at_s]
            if found:
                return min(found)
            time.sleep(0.05)
    raise ServerError("the new workers have run no task within 120 s")


def _files() -> int:
    return int(os.environ.get("LYCH_BENCH_FILES", "2000"))
