"""Ghosts: jobs that the pool forgot with a lost connection, though their payload is in the pipe to a child.

A child runs such a job all the same, perhaps the one that takes over the pipes of the child it was meant for; no
callback will tell of its end (`AsynPool.flush`, `on_process_up`). The pool still hears of it: it handles a message
about a job before it misses the job.

And jobs over their hard time limit: the pool says that they failed, and only then ends the child (`on_hard_timeout`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from billiard.pool import ACK, READY

from lych_checkpoint.process import Identity


@dataclass(slots=True)
class _Doomed:
    ended: Callable[[], None]
    child: Identity

    @property
    def gone(self) -> bool:
        """Whether its child is dead."""
        return self.child.alive() is False


@dataclass(slots=True)
class _Ghost:
    ended: Callable[[], None]
    pool: Any
    pipe: Any
    pid: int | None = None  # of the child that took it up

    @property
    def gone(self) -> bool:
        """Whether it can run no more: its child has been reaped, or its pipe was replaced unread."""
        if self.pid is None:
            return not _is_open(self.pool, self.pipe)
        return not any(child.pid == self.pid for child in list(self.pool._pool))  # noqa: SLF001 - its only list


class Ghosts:
    """The ghosts of one worker. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ghosts: dict[int, _Ghost | _Doomed] = {}
        self._heard: Any = None

    def keep(self, result: Any, pool: Any, ended: Callable[[], None]) -> bool:
        """Watch the forgotten job behind ``result``, and call ``ended`` once when it is over.

        Returns:
            False, and nothing is watched, if its payload is in no pipe: it will not run.
        """
        if result._job in self._ghosts:  # noqa: SLF001 - over its time, and its child not dead yet
            return True
        child = getattr(result, "_write_to", None)
        if child is None or result.ready() or not _is_open(pool, child.inq):
            return False
        with self._lock:
            self._ghosts[result._job] = _Ghost(ended, pool, child.inq)  # noqa: SLF001
        self._hear(pool)
        return True

    def keep_until_dead(self, result: Any, ended: Callable[[], None]) -> bool:
        """Watch the child that runs the job behind ``result``, and call ``ended`` once when it is dead.

        Returns:
            False, and nothing is watched, if no child lives that took the job up.
        """
        pid = getattr(result, "_worker_pid", None)
        child = Identity.of(pid) if pid else None
        if child is None or not child.alive():
            return False
        with self._lock:
            self._ghosts[result._job] = _Doomed(ended, child)  # noqa: SLF001
        return True

    def sweep(self) -> None:
        """End those that a dead child or a replaced pipe ended without a word."""
        with self._lock:
            gone = [job for job, ghost in self._ghosts.items() if ghost.gone]
        for job in gone:
            self._end(job)

    def _hear(self, pool: Any) -> None:
        if self._heard is pool:
            return
        self._heard = pool
        handlers = pool._result_handler.state_handlers  # noqa: SLF001 - read anew for each message
        on_ack, on_ready = handlers[ACK], handlers[READY]

        def acked(job: int, i: Any, time_accepted: float, pid: int, *more: Any) -> None:
            if isinstance(ghost := self._ghosts.get(job), _Ghost):
                ghost.pid = pid
            on_ack(job, i, time_accepted, pid, *more)

        def ready(job: int, *more: Any) -> None:
            try:
                on_ready(job, *more)
            finally:
                self._end(job)

        handlers.update({ACK: acked, READY: ready})

    def _end(self, job: int) -> None:
        with self._lock:
            ghost = self._ghosts.pop(job, None)
        if ghost is not None:
            ghost.ended()


def _is_open(pool: Any, pipe: Any) -> bool:
    return any(queues[0] is pipe for queues in list(getattr(pool, "_queues", ())))
