"""The daemon: it moves money between accounts, and it can rewrite itself."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import psycopg
import redis
from celery import Celery

import lych_checkpoint

VERSION = 1
ORGANS = {name: importlib.import_module(name) for name in ("alms", "tithe")}
ROOT = Path(os.environ["LYCH_ROOT"])
BROKER, DATABASE = os.environ["LYCH_REDIS_URL"], os.environ["LYCH_DATABASE_URL"]

app = Celery("daemon", broker=BROKER, backend=BROKER)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="daemon",
    beat_schedule={"pulse": {"task": "pulse", "schedule": 0.25}},
)
lych_checkpoint.install(app)

stamps = redis.Redis.from_url(BROKER)  # forked children each open a connection of their own


@functools.cache
def soul() -> psycopg.Connection[tuple[object, ...]]:
    """Return this pool child's one connection."""
    return psycopg.connect(DATABASE, autocommit=True)


@app.task(name="pulse", ignore_result=True)
def pulse(transfers: int = 8) -> None:
    """Ask for a handful of transfers; beat calls this."""
    for _ in range(transfers):
        transfer.delay(random.choice(list(ORGANS)))


@app.task(name="transfer", ignore_result=True)
def transfer(organ: str) -> None:
    """Let one organ move money once, in one transaction, and stamp when this ran."""
    begun = time.time()
    module, connection = ORGANS[organ], soul()
    with connection.transaction():
        module.move(connection, f"core {VERSION}, {organ} {module.VERSION}")
        time.sleep(random.uniform(0, 0.04))  # so that a freeze finds transactions open and has to wait for them
    stamp = {"began": begun, "ended": time.time(), "organ": organ, "version": module.VERSION}
    stamps.rpush("demo:stamps", json.dumps(stamp))


@app.task(name="evolve", base=lych_checkpoint.EvolutionTask, bind=True)
def evolve(self: lych_checkpoint.EvolutionTask, files: dict[str, str], statements: list[str]) -> str:
    """Rewrite code and schema; a sealed checkpoint precedes this body, and its id is the result.

    Args:
        self: the task.
        files: new text by path below the root, `core/…` or `extensions/NAME/…`.
        statements: the migration, in SQL.
    """
    for path, text in files.items():
        (ROOT / path).write_text(text)
        repository = (ROOT / path).parent
        for arguments in (["add", "-A"], ["commit", "-q", "-m", "Evolve"]):
            subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True)
    with soul().transaction():
        for statement in statements:
            soul().execute(statement.encode())
        lych_checkpoint.imprint(soul())
    return self.checkpoint
