"""The daemon: it moves money between accounts, and it can rewrite itself."""

from __future__ import annotations

import contextlib
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


@app.task(name="pulse", ignore_result=True)
def pulse(transfers: int = 10) -> None:
    """Ask for a handful of transfers; beat calls this."""
    for _ in range(transfers):
        transfer.delay(random.choice(list(ORGANS)))


@app.task(name="transfer", ignore_result=True)
def transfer(organ: str) -> None:
    """Let one organ move money once, in one transaction, and stamp when this ran."""
    begun = time.time()
    module = ORGANS[organ]
    with psycopg.connect(DATABASE) as connection:
        module.move(connection, f"core {VERSION}, {organ} {module.VERSION}")
    stamp = {"began": begun, "ended": time.time(), "organ": organ, "version": module.VERSION}
    stamps.rpush("demo:stamps", json.dumps(stamp))


@app.task(name="evolve", base=lych_checkpoint.EvolutionTask)
def evolve(files: dict[str, str], statements: list[str]) -> None:
    """Rewrite code and schema; a sealed checkpoint precedes this body.

    Args:
        files: new text by path below the root, `core/…` or `extensions/NAME/…`.
        statements: the migration, in SQL.
    """
    for path, text in files.items():
        (ROOT / path).write_text(text)
        repository = (ROOT / path).parent
        for arguments in (["add", "-A"], ["commit", "-q", "-m", "Evolve"]):
            subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True)
    with contextlib.closing(psycopg.connect(DATABASE)) as connection, connection.transaction():
        for statement in statements:
            connection.execute(statement)
        lych_checkpoint.imprint(connection)
