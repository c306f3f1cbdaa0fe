"""The Celery app that bench workers load, from the bench federation's own repository."""

from __future__ import annotations

import json
import os
import subprocess
import time
import timeit

import redis
from celery import Celery

import lych_checkpoint

answers = redis.Redis.from_url(os.environ["LYCH_REDIS_URL"])
app = Celery("bench", broker=os.environ["LYCH_REDIS_URL"], backend=os.environ["LYCH_REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)
lych_checkpoint.install(app)


@app.task(name="nothing")
def nothing() -> None:
    """Do nothing."""


@app.task(name="done")
def done(key: str) -> None:
    """Note the time."""
    answers.rpush(key, time.time())


@app.task(name="time_safepoints")
def time_safepoints(samples: int, calls: int) -> None:
    """Time ``calls`` calls of `safepoint` less as many of an empty function, ``samples`` times, in ms a call."""
    found = []
    for _ in range(samples):
        calling = timeit.timeit(lych_checkpoint.safepoint, number=calls)
        looping = timeit.timeit(_empty, number=calls)
        found.append((calling - looping) / calls * 1000)
    answers.rpush("bench:safepoints", json.dumps(found))


def _empty() -> None:
    """What a call costs at the least."""


@app.task(name="churn")
def churn(transactions: int = 20) -> None:
    """Write for a moment with pgbench, then ask for the same again: the queue never runs dry."""
    subprocess.run(
        [*json.loads(os.environ["LYCH_BENCH_PGBENCH"]), "-n", "-c", "2", "-t", str(transactions), "soul"],
        check=True, capture_output=True,
    )
    churn.delay(transactions)
