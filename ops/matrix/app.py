"""The app that the matrix's workers load: bodies that stamp when they ran, in a file that is written whole lines."""

from __future__ import annotations

import os
import time

from celery import Celery

import lych_checkpoint
from ops.matrix.cells import Cell

_records = os.environ["LYCH_TEST_RECORDS"]
app = Celery("matrix")
app.conf.update(Cell(*os.environ["LYCH_TEST_CELL"].split(", ")).configuration(os.environ["LYCH_TEST_BROKER_URL"]))
lych_checkpoint.install(app)


@app.task(name="work")
def work(tag: int, seconds: float = 0.0) -> None:
    """Run for a while and stamp: tag, when it began, when it ended (Unix seconds)."""
    began = time.time()
    if seconds:
        time.sleep(seconds)
    descriptor = os.open(_records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{tag} {began:.6f} {time.time():.6f}\n".encode())
    finally:
        os.close(descriptor)
