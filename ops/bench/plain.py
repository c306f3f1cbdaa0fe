"""The bench's app without the plugin."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

answers = redis.Redis.from_url(os.environ["LYCH_REDIS_URL"])
app = Celery("bench", broker=os.environ["LYCH_REDIS_URL"], backend=os.environ["LYCH_REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)


@app.task(name="nothing")
def nothing() -> None:
    """Do nothing."""


@app.task(name="done")
def done(key: str) -> None:
    """Note when the batch came to its end."""
    answers.rpush(key, time.time())
