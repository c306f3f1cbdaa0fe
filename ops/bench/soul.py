"""The window of each driver at several sizes, beside bare floors and beside what people do without us.

LYCH_BENCH_GB ("0.1 1 8") are the soul's sizes; LYCH_BENCH_ROUNDS (20) the windows of each driver at each, half as
many from 1 GB on, and two of a dump of more. LYCH_BENCH_DRIVERS ("dump btrfs reflink pitr") are those measured:
dumps of 8 GB keep the disk busy that they share with btrfs. Rivals are measured at 1 GB, or the largest size below.
LYCH_BENCH_DOCUMENT=docs/bench-soul.md writes the result for people there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from celery import Celery

from lych_checkpoint.soul import Soul
from ops.bench import floors, rivals
from ops.bench.fill import QUIET, fill, room_gb
from ops.bench.ground import Ground, place, rounds
from ops.bench.record import Row, document, header, report
from ops.servers.child import ServerError
from ops.servers.filesystems import Kind

#: Above it a dump takes a minute and more.
_LONG_GB = 1.0
_FEW_ROUNDS = 3
_TEXT = """Two workers (prefork), each of which runs pgbench task after task until the freeze; "idle" is without them.
`btrfs` and `dump` are measured on Btrfs, `reflink` and `pitr` on XFS. The window is from the last task's end to the
thaw rung. Driver and floor are measured in turns, so that both see the same noise. Rows beside pgbench's tables
compress well, to pg_dump's advantage. "Stop, pg_dump, start" holds from the stop to the end of the first task
of the new workers; pg_basebackup and pgBackRest hold nobody, and know nothing of the code. Debian's pgBackRest knows
PostgreSQL 15 at most: it backs up a server of its own with as much in it. Restores are the whole command, with its
safety checkpoint, workers stopped. `pitr` flushes the WAL up to its point after the thaw, so the floor that flushes
does more in its time than that window does; the one that does not is below it."""
_NAMES = ["one", "two"]
_PLACES: tuple[tuple[Kind, tuple[str, ...]], ...] = (("btrfs", ("dump", "btrfs")), ("xfs", ("reflink", "pitr")))
_FLOORS: dict[str, tuple[str, Callable[[Ground], float]]] = {
    "btrfs": ("bare ioctl", floors.snapshot), "dump": ("bare pg_dump to its locks", floors.locks),
    "reflink": ("bare clones in backup mode", floors.clones),
    "pitr": ("bare restore point, flushed", floors.point),
}
_UNFLUSHED = "bare restore point, not flushed"
_WINDOW, _IDLE = "window", "hold, idle workers"


def measure() -> None:
    """Measure every driver that fits at every size, then report, and say which goals are met."""
    named = os.environ.get("LYCH_BENCH_DRIVERS", " ".join(_FLOORS)).split()
    sizes = sorted(float(one) for one in os.environ.get("LYCH_BENCH_GB", "0.1 1 8").split())
    with place() as home, ExitStack() as stack:
        head = header(home, Ground(home, stack).versions())
    head["file_system"] = "btrfs and xfs" if "LYCH_BENCH_DIR" not in os.environ else head["file_system"]
    head["database_bytes"], head["first_checkpoint_bytes"], head["left_out"] = {}, {}, {}
    rival_gb = max((gb for gb in sizes if gb <= _LONG_GB), default=0.0)
    rows: list[Row] = []
    failed: list[str] = []
    for gb in sizes:
        if gb * 3 > room_gb():
            head["left_out"][f"{gb:g} GB"] = f"only {room_gb():.0f} GB are free"
            continue
        for kind, fitting in _PLACES:
            drivers = tuple(one for one in fitting if one in named)
            if not drivers:
                continue
            with place(size_gb=round(gb * 6) + 16, kind=kind) as home, ExitStack() as stack:
                print(f"{kind}: filling {gb:g} GB", file=sys.stderr)
                try:
                    for some in _at(Ground(home, stack, QUIET), drivers, gb, head, with_rivals=gb == rival_gb):
                        rows += some
                except ServerError as error:
                    failed.append(f"{kind}, {gb:g} GB: {error}")
    report("soul", head, rows)
    verdicts = [f"{what} is left out: {why}" for what, why in head["left_out"].items()] + _goals(rows, sizes)
    print("\n".join(verdicts))
    written = os.environ.get("LYCH_BENCH_DOCUMENT")
    if written:
        lines = [*verdicts, *(f"first checkpoint of {what}: {one / 1e6:,.0f} MB more on the disk"
                              for what, one in head["first_checkpoint_bytes"].items())]
        text = "\n".join([_TEXT, "", *(f"- {line}" for line in lines)])
        Path(written).write_text(document("soul", "How long a capture takes", text, head, rows, {}))
    if failed:
        raise ServerError("; ".join(failed))


def _at(
    ground: Ground, wanted: tuple[str, ...], gb: float, head: dict[str, Any], *, with_rivals: bool
) -> Iterator[list[Row]]:
    """Fill the soul, and measure the drivers with idle workers, then with pgbench, then their restores."""
    fill(ground.postgres, gb, pgbench=True)
    reasons = dict(Soul.reports(ground.open().ground()))
    drivers = [one for one in wanted if reasons[one] is None]
    head["left_out"] |= {f"{one}, {gb:g} GB": str(reasons[one]) for one in wanted if one not in drivers}
    size = ground.postgres.run("psql", "-Atc", "select pg_database_size('soul')", "soul")
    head["database_bytes"][f"{gb:g} GB"] = int(size)
    workers = ground.start_workers(_NAMES, pool="prefork")
    yield _idle(ground, drivers, gb, head)
    if with_rivals and "dump" in drivers:
        yield rivals.measure(ground, workers, _NAMES, gb, _FEW_ROUNDS)
    for _ in range(2):
        Celery("bench", broker=ground.broker.url).send_task("churn")
    yield _written(ground, drivers, gb)
    for worker in workers:
        worker.ask_to_stop()
    for worker in workers:
        worker.wait_exit(60)
    ground.environment["LYCH_QUEUE_POLICY"] = "keep"  # the load of pgbench waits there
    for driver in drivers:
        yield [_restored(ground, driver, gb)]


def _restored(ground: Ground, driver: str, gb: float) -> Row:
    samples = []
    sealed = ground.create(driver)["id"]
    for _ in range(min(_FEW_ROUNDS, max(1, _rounds(gb, driver) // 10))):
        began_s = time.perf_counter()
        ground.lych("restore", sealed, "--yes", LYCH_DRIVER=driver)
        samples.append((time.perf_counter() - began_s) * 1000)
    return Row("restore, whole command, workers stopped", f"{driver}, {gb:g} GB", tuple(samples))


def _idle(ground: Ground, drivers: list[str], gb: float, head: dict[str, Any]) -> list[Row]:
    """Create with idle workers; the first of each driver says what room it takes, and warms caches."""
    rows = []
    for driver in drivers:
        before_bytes = _taken_bytes(ground)
        began_s = time.perf_counter()
        ground.create(driver)
        first_ms = (time.perf_counter() - began_s) * 1000
        head["first_checkpoint_bytes"][f"{driver}, {gb:g} GB"] = _taken_bytes(ground) - before_bytes
        holds = [ground.create(driver)["window"]["hold_ms"] for _ in range(min(_FEW_ROUNDS, _rounds(gb, driver)))]
        rows += [Row("first create, whole command", f"{driver}, {gb:g} GB", (first_ms,)),
                 Row(_IDLE, f"{driver}, {gb:g} GB", tuple(holds))]
    return rows


def _written(ground: Ground, drivers: list[str], gb: float) -> list[Row]:
    """Create while pgbench writes until the freeze, each driver and its floor in turns."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(max((_rounds(gb, one) for one in drivers), default=0) + 1):
        for driver in [one for one in drivers if number <= _rounds(gb, one)]:
            began_s = time.perf_counter()
            window = ground.create(driver)["window"]
            whole_ms = (time.perf_counter() - began_s) * 1000
            name, floor = _FLOORS[driver]
            measured = {
                name: floor(ground),
                **({_UNFLUSHED: floors.unflushed_point(ground)} if driver == "pitr" else {}),
                _WINDOW: window["hold_ms"] - window["ack_ms"] - window["drain_ms"],
                "hold, with the drain of running tasks": window["hold_ms"],
                "create, whole command": whole_ms,
            }
            if number:  # the first round warms caches
                for what, value in measured.items():
                    found.setdefault((what, driver), []).append(value)
    return [Row(what, f"{driver}, {gb:g} GB", tuple(samples), floor=_FLOORS[driver][0] if what == _WINDOW else "")
            for (what, driver), samples in sorted(found.items(), key=lambda one: drivers.index(one[0][1]))]


def _goals(rows: list[Row], sizes: list[float]) -> list[str]:
    """Say of each goal whether it is met, where its rows were measured."""
    p50 = {(row.what, *row.variant.rpartition(", ")[::2]): row.p50_ms for row in rows}
    smallest, largest = (f"{gb:g} GB" for gb in (sizes[0], sizes[-1]))
    verdicts = []

    def judge(what: str, value: float, goal: float, unit: str, *, least: bool = False) -> None:
        met = value >= goal if least else value <= goal
        verdicts.append(f"{what}: {value:.2f}{unit}, goal {'≥' if least else '≤'} {goal:g}{unit}: "
                        f"{'met' if met else 'missed'}")

    for driver in ("btrfs", "pitr"):
        window = p50.get((_WINDOW, driver, largest))
        if window is not None:
            floor = p50[_FLOORS[driver][0], driver, largest]
            judge(f"{driver}, {largest}: window / {_FLOORS[driver][0]}", window / floor, 3, "")
            judge(f"{driver}: window at {largest} / at {smallest}", window / p50[_WINDOW, driver, smallest], 1.5, "")
    for (what, driver, size), value in p50.items():
        if (what, driver, size) == (_WINDOW, "dump", "1 GB"):
            judge("dump, 1 GB: window", value, 100, " ms")
        stopped = p50.get((rivals.STOPPED, "", size))
        if what == _IDLE and stopped is not None:
            judge(f"{driver}, {size}: hold of stop, pg_dump, start / {_IDLE}", stopped / value, 100, "", least=True)
    return verdicts


def _rounds(gb: float, driver: str) -> int:
    n = rounds(20)
    return n if gb < 1 else max(1, n // (10 if driver == "dump" and gb > _LONG_GB else 2))


def _taken_bytes(ground: Ground) -> int:
    ground.postgres.run("psql", "-qc", "checkpoint", "soul")
    subprocess.run(["sync", "-f", ground.home], check=True)
    room = os.statvfs(ground.home)
    return (room.f_blocks - room.f_bfree) * room.f_frsize
