"""The listener: an operating-system thread that hears the plugin's own bell, beats, and keeps the lease's end.

It is a thread so that a worker whose main loop is busy with a task (the solo pool always, others at times) still
closes its barrier and acks at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kombu.utils import functional

from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.lease.bell import Bell
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.worker.member import EXIT_AGAIN, Member

logger = logging.getLogger(__name__)

#: A worker that must leave and has nothing in flight may take this long for it. Celery's warm shutdown now and then
#: hangs with its children idle, and a supervisor would never start the new worker.
_LEAVE_S = 20.0


@contextmanager
def listening(store: Store, member: Member) -> Iterator[threading.Thread]:
    """Run the listener for the body of the `with`."""
    # Under gevent kombu waits for a lost broker in the true `time.sleep`, and every greenlet stands still, this one
    # too: gevent patches threads before time (26.9) and meets Celery's proxies there, which import kombu.
    vars(functional)["sleep"] = time.sleep
    done = threading.Event()
    thread = threading.Thread(target=_listen, args=(store, member, done), name="lych-listener", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join(timeout=2)


def _listen(store: Store, member: Member, done: threading.Event) -> None:
    idle_since_s: float | None = None
    with Bell(store) as bell:
        while not done.is_set():
            try:
                if member.left and member.barrier is not None and not member.barrier.tokens.running():
                    idle_since_s = idle_since_s or time.monotonic()
                    if time.monotonic() - idle_since_s > _LEAVE_S:
                        logger.critical("The shutdown hangs and nothing runs here any more: ending the process")
                        os._exit(EXIT_AGAIN)
                rung = bell.wait(member.due_s(), unless=done.is_set)
                member.tick()
                if done.is_set():
                    return
                if rung:
                    member.hear(rung)
                else:
                    member.look()
                    member.survey()
                    member.tick()  # it runs git; that was no sleep
            except CheckpointError as error:
                logger.debug("Look failed: %s", error)
                member.tick()  # a server that does not answer took its time; that was no sleep
                member.overdue()
                done.wait(0.05)  # a refused connection answers at once; do not spin on it
            except Exception:  # the thread is the worker's life line: it must outlive what it did not foresee
                logger.exception("The listener met an error and goes on")
                done.wait(0.2)
