"""The Celery app that bench workers load, from the bench federation's own repository."""

from __future__ import annotations

import json
import os
import subprocess

from celery import Celery

import lych_checkpoint

app = Celery("bench", broker=os.environ["LYCH_REDIS_URL"], backend=os.environ["LYCH_REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)
lych_checkpoint.install(app)


@app.task(name="churn")
def churn(transactions: int = 20) -> None:
    """Write for a moment with pgbench, then ask for the same again: the queue never runs dry."""
    subprocess.run(
        [*json.loads(os.environ["LYCH_BENCH_PGBENCH"]), "-n", "-c", "2", "-t", str(transactions), "soul"],
        check=True, capture_output=True,
    )
    churn.delay(transactions)
