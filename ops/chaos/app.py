"""The app that chaos workers load: bodies that stamp every step they make, and a probe of each worker's state.

Stamps go into files opened with O_APPEND, which no fault of the run touches. A line is written whole or not at all.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps

import lych_checkpoint
from lych_checkpoint.worker.steps import Membership
from ops.chaos.brokers import configuration

_PROBE_EVERY_S = 0.05
_directory = Path(os.environ["LYCH_TEST_RECORDS"])

app = Celery("chaos", broker=os.environ["LYCH_TEST_BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_connection_retry_delay=0.2,
    **configuration(os.environ["LYCH_TEST_BROKER_KIND"]),
)
lych_checkpoint.install(app)


def _append(name: str, line: str) -> None:
    descriptor = os.open(_directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


@app.task(name="work")
def work(tag: int, steps: int, step_s: float, *, parks: bool = False) -> None:
    """Make ``steps`` steps of ``step_s`` seconds; with ``parks`` a freeze may pass between them."""
    run = uuid.uuid4().hex

    def stamp(kind: str) -> None:
        _append("stamps", f"{time.time():.6f} {kind} {tag} {run} {os.getpid()}")

    stamp("start")
    for _ in range(steps):
        time.sleep(step_s)
        stamp("step")
        if parks:
            stamp("pause")
            lych_checkpoint.safepoint()
            stamp("resume")
    stamp("end")


class Probe(bootsteps.StartStopStep):
    """Notes twenty times a second whether this worker is frozen; a gap shows that it was stopped.

    A barrier that is closed counts as frozen too, but where the worker leaves or cannot see Redis: I7 has it so.
    """

    requires = (Membership,)

    def start(self, worker: Any) -> None:
        """Begin to note; ends with the process."""
        threading.Thread(target=self._note, args=(worker,), daemon=True).start()

    def _note(self, worker: Any) -> None:
        while True:
            member = worker.lych_member
            closed = member.barrier.closed and not (member.left or member._misses)  # noqa: SLF001
            state = "frozen" if member.frozen or closed else "thawed"
            _append("probes", f"{time.time():.6f} {worker.hostname}/{os.getpid()} {state}")
            time.sleep(_PROBE_EVERY_S)


app.steps["worker"].add(Probe)
