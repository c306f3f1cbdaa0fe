"""What the plugin costs while nothing is frozen: tasks per second with and without it, one `safepoint()`,
and the stamp of one message.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
import timeit
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from lych_checkpoint.stamping import Stamper
from ops.bench.ground import Ground
from ops.bench.record import Row
from ops.servers.celery import CeleryProcess

_TASKS, _TURNS = 20, 36
_DONE, _TEMPLATE = "pace:done", "pace-template"
_APPS = {"plain": "ops.bench.plain", "again": "ops.bench.plain", "plugin": "bench_app"}


def measure(ground: Ground, pool: str, sets: int) -> tuple[list[Row], dict[str, Any]]:
    """Measure batches of empty tasks in ABBA order, plugin against plain, and plain against plain as the control.

    One worker per variant with one place, each with its own queue, so that order tells the end: a batch is a copy
    of one list of messages, made inside Redis, and its last message notes the time.

    One process is up to 7 % faster than its twin for as long as both live, more than the plugin costs: each set of
    workers is new, and counts once. The machine's own speed changes by more within seconds: a batch takes
    some hundredths of one, and each set runs many, each turn in an order by chance and its reverse.

    Returns:
        ms per task of each set, and per kind of pair the ratio of speeds (with / without) with its 95 % interval.
    """
    samples: dict[str, list[float]] = {variant: [] for variant in _APPS}
    with redis.Redis.from_url(ground.broker.url, socket_timeout=None) as client:
        _publish_template(ground.broker.url)
        for _ in range(sets):
            with _workers(ground, pool):
                for variant in _APPS:
                    for _ in range(4):
                        _batch(client, f"{variant}-{pool}")  # warms the worker
                took_s = dict.fromkeys(_APPS, 0.0)
                for _ in range(_TURNS):
                    order = random.sample(list(_APPS), len(_APPS))
                    for variant in (*order, *reversed(order)):
                        took_s[variant] += _batch(client, f"{variant}-{pool}")
            for variant, batches_s in took_s.items():
                samples[variant].append(batches_s * 1000 / (2 * _TURNS * _TASKS))
        client.delete(_TEMPLATE)
    floor = "per task, without the plugin"
    rows = [Row(floor, pool, tuple(samples["plain"])),
            Row("per task, without the plugin, again", pool, tuple(samples["again"]), floor=floor),
            Row("per task, with the plugin", pool, tuple(samples["plugin"]), floor=floor)]
    return rows, {"with / without": _interval(samples["plain"], samples["plugin"]),
                  "without / without": _interval(samples["plain"], samples["again"])}


@contextmanager
def _workers(ground: Ground, pool: str) -> Iterator[None]:
    checkout = str(Path(__file__).parents[2])
    with ExitStack() as stack:
        started = [stack.enter_context(CeleryProcess.worker(
            app, f"{variant}-{pool}", directory=ground.home / "logs", pool=pool, concurrency=1,
            options=("-Q", f"{variant}-{pool}"),
            environment={**ground.environment, "PYTHONPATH": f"{ground.environment['PYTHONPATH']}:{checkout}"},
        )) for variant, app in _APPS.items()]
        for worker in started:
            worker.wait_ready(120)
        yield


def safepoint_ns(ground: Ground, pool: str, n: int) -> Row:
    """Measure `safepoint()` where the one worker of ``pool`` runs its bodies, thawed, less the loop around it."""
    with Celery("bench", broker=ground.broker.url, set_as_current=False) as app, \
            redis.Redis.from_url(ground.broker.url, socket_timeout=None) as client:
        app.send_task("time_safepoints", args=[n, 20_000])
        found = client.blpop(["bench:safepoints"], timeout=60)
    return Row("safepoint(), thawed", pool, tuple(json.loads(found[1])))


def stamping(ground: Ground, n: int) -> Row:
    """Measure what one published message costs its publisher, the reading of Redis each second in it."""
    stamper, calls = Stamper(ground.open), 20_000
    stamper.on_publish(headers={})
    samples = []
    for _ in range(n):
        publishing = timeit.timeit(lambda: stamper.on_publish(headers={}), number=calls)
        calling = timeit.timeit(lambda: _unstamped(headers={}), number=calls)
        samples.append((publishing - calling) / calls * 1000)
    return Row("stamp of a message", "", tuple(samples))


def _unstamped(**_: Any) -> None:
    """What a signal's receiver costs at the least."""


def _publish_template(url: str) -> None:
    with Celery("bench", broker=url, set_as_current=False) as app, app.connection_for_write() as connection, \
            connection.Producer() as producer:
        for _ in range(_TASKS - 1):
            app.send_task("nothing", queue=_TEMPLATE, producer=producer, ignore_result=True)
        app.send_task("done", args=[_DONE], queue=_TEMPLATE, producer=producer, ignore_result=True)


def _batch(client: Any, queue: str) -> float:
    began_s = time.time()
    client.copy(_TEMPLATE, queue)
    return float(client.blpop([_DONE], timeout=60)[1]) - began_s


def _interval(plain: list[float], other: list[float]) -> Mapping[str, float]:
    """Return the mean of the sets' ratios of speeds and its 95 % interval, on the logarithm."""
    logs = [math.log(one / two) for one, two in zip(plain, other, strict=True)]
    # Student's quantile, by the first term of its expansion: right to a hundredth from ten sets on.
    quantile = 1.96 + 2.37 / (len(logs) - 1)
    mean, half = statistics.mean(logs), quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half),
            "sets": len(logs), "pairs": len(logs) * _TURNS}
