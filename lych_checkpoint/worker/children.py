"""The end of idle pool children: after its last word to the parent each sleeps for a second, lest nobody heard it.

In a warm shutdown nobody listens to prefork's children any more, so a worker would take that second to leave.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

_LOOK_S, _WAIT_S = 0.05, 5.0


def dismiss(pool: Any, idle: Callable[[], bool]) -> threading.Thread | None:
    """End each child of a closed prefork pool once it has said its last word; its own shutdown has run by then.

    Not before ``idle``, whether every result was heard: from then on all that a child writes is that word. Other
    pools, whose children are heard to the last, are left alone.
    """
    inner = getattr(pool, "_pool", None)
    children = getattr(inner, "_fileno_to_outq", None)
    if not children:
        return None
    if idle():
        # Celery's own (5.6) sleeps half a second between its looks at timers that bring results back; none is due.
        pool.on_stop = partial(_stop, inner)
    thread = threading.Thread(target=_end, args=({fd: child.pid for fd, child in children.items()}, idle),
                              daemon=True, name="lych-dismissal")
    thread.start()
    return thread


def _stop(pool: Any) -> None:
    pool.close()
    pool.join()


def _end(children: dict[int, int], idle: Callable[[], bool]) -> None:
    while not idle():
        time.sleep(_LOOK_S)
    deadline_s = time.monotonic() + _WAIT_S
    watched = select.poll()
    for descriptor in children:
        watched.register(descriptor, select.POLLIN)
    while children and time.monotonic() < deadline_s:
        for descriptor, _ in watched.poll(100):
            watched.unregister(descriptor)
            with suppress(ProcessLookupError):
                os.kill(children.pop(descriptor), signal.SIGTERM)
