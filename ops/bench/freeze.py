"""From the lease written to all acks, and from the thaw to the first task; the floor is a bare publish to BLPOP.

LYCH_BENCH_DOCUMENT=docs/bench-freeze.md writes the result for people there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from celery import Celery

from lych_checkpoint import freeze
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import roster
from ops.bench import crowd, pace
from ops.bench.ground import Ground, place, rounds
from ops.bench.record import Row, document, header, report
from ops.servers.child import end, wait_until

_COUNTS = (1, 4, 16, 32)
_CROWD = 1000
_GOALS = {"lease to all acks": 1.5, "lower bound of the speed": 0.97}
_GOALS_MS = {("safepoint(), thawed", pool): 0.001 for pool in ("prefork", "threads")}
_TEXT = """Floor and freeze are measured in turns: the floor publishes to as many bare processes, each of which
hears it and pushes one answer. The workers are solo ones but for the first (prefork), idle, with both bells.
"Lease to all acks" begins before the lease is written and ends when the coordinator has every ack; then it rings the
control bell, which idle workers need not hear: "control bell" is that broadcast, part of every hold.
"Thaw to the first task's end" is of a message that waits in the queue during the freeze. A thousand entries are
simulated by four processes that ack for their share over real Redis. Tasks per second: batches of 20 empty tasks
through workers with one place, one with the plugin and two without, in an order by chance and then its reverse: ABBA
pairs of with and without, and of without and without as the control. Each set of three workers is new, takes 36 such
turns and counts once in the interval, for one process is faster than its twin for as long as both live.
`safepoint()` is less the loop around it, an empty call."""
_CHANNEL, _ACKS, _FIRST = "floor:bell", "floor:acks", "bench:first"
# Each listener is what a worker is at the least: a process that hears a message and answers with a push.
_LISTENER = f"""
import sys, redis
client = redis.Redis.from_url(sys.argv[1], socket_timeout=None)
bell = client.pubsub(ignore_subscribe_messages=True)
bell.subscribe("{_CHANNEL}")
for message in bell.listen():
    client.rpush("{_ACKS}", message["data"])
"""


def measure() -> None:
    """Measure 1, 4, 16 and 32 workers, floor and freeze in turns; a simulated thousand; the cost while thawed."""
    rows: list[Row] = []
    n = rounds(100)
    with place() as home, ExitStack() as stack:
        ground = Ground(home, stack)
        head = header(home, ground.versions())
        federation = ground.open()
        app = stack.enter_context(Celery("bench", broker=ground.broker.url, set_as_current=False))
        rows += crowd.measure(federation, ground.broker.url, _CROWD, max(2, n // 5))
        head["tasks per second"] = {}
        for pool in ("prefork", "solo"):
            paced, head["tasks per second"][pool] = pace.measure(ground, pool, max(2, n * 6 // 10))
            rows += paced
        for pool in ("threads", "prefork"):
            (safe,) = ground.start_workers(["safe"], pool=pool)
            rows.append(pace.safepoint_ns(ground, pool, max(10, n // 5)))
            if pool == "threads":
                safe.stop()
        rows.append(pace.stamping(ground, max(10, n // 5)))
        names = ["safe"]
        for count in _COUNTS:
            ground.start_workers([f"w{number}" for number in range(len(names), count)], pool="solo")
            names += [f"w{number}" for number in range(len(names), count)]
            rows += _freezes(ground, federation, app, count, n)
        report("freeze", head, rows)
        verdicts = _judge(rows, head["tasks per second"])
        print("\n".join(verdicts))
        written = os.environ.get("LYCH_BENCH_DOCUMENT")
        if written:
            text = "\n".join([_TEXT, "", *(f"- {line}" for line in verdicts)])
            Path(written).write_text(document("freeze", "How long a freeze takes", text, head, rows, _GOALS_MS))


def _judge(rows: list[Row], speeds: dict[str, dict[str, Mapping[str, float]]]) -> list[str]:
    """Return how fast, and which goals were met, a line each."""
    what, limit = "lease to all acks", _GOALS["lease to all acks"]
    p50_ms = {row.what: row.p50_ms for row in rows if row.variant == f"{_COUNTS[-1]} workers"}
    ratio = p50_ms[what] / p50_ms["bare publish to acks"]
    lines = [f"{what}, {_COUNTS[-1]} workers: {ratio:.2f} times the floor, goal {limit}: {_met(ratio <= limit)}"]
    least = _GOALS["lower bound of the speed"]
    for pool, ratios in speeds.items():
        lines += [f"{pool}: speed {kind} {found['mean']:.3f}, 95 % in [{found['low']:.3f}, {found['high']:.3f}], "
                  f"{found['sets']} sets of workers, {found['pairs']} ABBA pairs" for kind, found in ratios.items()]
        low = ratios["with / without"]["low"]
        lines.append(f"{pool}: lower bound of the speed {low:.3f}, goal {least}: {_met(low >= least)}")
    return lines


def _met(good: bool) -> str:
    return "met" if good else "missed"


def _freezes(ground: Ground, federation: Federation, app: Celery, count: int, n: int) -> list[Row]:
    """Freeze ``count`` workers ``n`` times with both bells, beside the bare floor, a task waiting for each thaw."""
    floor, acks, rings, firsts = [], [], [], []
    terms = federation.terms(freeze.CHECKPOINT, "bench")
    ring = federation.ring(app)

    def at_thaw(act: str, epoch: int) -> None:
        if act == "thaw":
            ring(act, epoch)

    wait_until(lambda: len(roster.entries(federation.store())) == count, timeout_s=30,
               else_say=lambda: f"{count} workers are not in the roster")
    with (
        listening(ground.broker.url, count) as bare,
        redis.Redis.from_url(ground.broker.url, socket_timeout=None) as client,
    ):
        for number in range(n + 1):
            floored_ms = bare()
            began_s = time.perf_counter()
            with freeze.thawing(federation.store(), terms, at_thaw) as (frozen, thaw):
                frozen.wait_for_acks()
                acked_s = time.perf_counter()
                ring("freeze", frozen.epoch)  # as `wait_for_acks` does, but timed apart
                rung_s = time.perf_counter()
                frozen.drain()
                app.send_task("done", args=[_FIRST], ignore_result=True)
                frozen.confirm()
                time.sleep(0.02)  # the message is at rest, whoever will fetch it
                thawed_at = time.time()
                thaw()
            first_at = float(client.blpop([_FIRST], timeout=30)[1])
            if number:  # the first one warms caches
                floor.append(floored_ms)
                acks.append((acked_s - began_s) * 1000)
                rings.append((rung_s - acked_s) * 1000)
                firsts.append((first_at - thawed_at) * 1000)
            time.sleep(0.05)
    variant = f"{count} workers"
    return [Row("bare publish to acks", variant, tuple(floor)),
            Row("lease to all acks", variant, tuple(acks), floor="bare publish to acks"),
            Row("control bell", variant, tuple(rings)),
            Row("thaw to the first task's end", variant, tuple(firsts))]


@contextmanager
def listening(url: str, count: int) -> Iterator[FloorBell]:
    """Start ``count`` bare listeners and yield the bell that measures one round over them, in ms."""
    children = [subprocess.Popen([sys.executable, "-c", _LISTENER, url]) for _ in range(count)]
    try:
        with redis.Redis.from_url(url, socket_timeout=None) as client:
            while dict(client.pubsub_numsub(_CHANNEL)).get(_CHANNEL.encode(), 0) < count:
                time.sleep(0.02)
            yield FloorBell(client, count)
    finally:
        for child in children:
            end(child)


class FloorBell:
    """Rings the bare listeners."""

    def __init__(self, client: redis.Redis, count: int) -> None:
        self._client, self._count = client, count

    def __call__(self) -> float:
        """Publish once, wait for every answer, and return the milliseconds."""
        began_s = time.perf_counter()
        self._client.publish(_CHANNEL, "1")
        for _ in range(self._count):
            self._client.blpop([_ACKS], timeout=5)
        return (time.perf_counter() - began_s) * 1000
