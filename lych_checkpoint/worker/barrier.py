"""The barrier: the one place where a request is either started or held.

It stands at the worker's ``_process_task``, the last function that immediate, ETA and rate-limited requests share on
every pool. On prefork the request already owns its slot of the pool's semaphore there; a held request keeps it, which
is why nothing has to be pulled back out of the semaphore's waiting line: whatever gets a slot during a freeze arrives
here and is held behind it, in order. Releasing the slot instead would recurse through the whole line.

Other pools queue inside (threads) or block the consumer (green pools), so there a request passes only while the pool
has a free place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from lych_checkpoint.worker.flag import Flag
from lych_checkpoint.worker.tokens import Tokens


class Barrier:
    """Holds requests while it is closed.

    Args:
        start: Celery's own `_process_task`.
        exempt: whether a task, by name, may start while closed.
        places: how many may run at once, or None where the pool's semaphore sees to that.
        may_start: asked before each start; False holds the request (the process may have slept).
        wake: called from any thread when the barrier closed, or when held requests may be let go; the worker's main
            loop then calls `let_go`.
        drained: called when a request ended while the barrier was closed.
        flag: one byte, shared with the pool's children: 1 while closed.
        blocks: wait for a place instead of holding, as green pools do by themselves. Held requests would use up the
            prefetch window there, and kombu's Redis transport then looks for messages only once a second.
    """

    def __init__(
        self, start: Callable[[Any], Any], *, exempt: Callable[[str], bool], places: Callable[[], int] | None,
        may_start: Callable[[], bool], wake: Callable[[], None], drained: Callable[[], None],
        flag: Flag, blocks: bool = False,
    ) -> None:
        self._start, self._exempt, self._places = start, exempt, places
        self._may_start, self._wake, self._drained = may_start, wake, drained
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._held: deque[Any] = deque()
        self._flag, self._blocks = flag, blocks
        self.tokens = Tokens(self._on_release, exempt)

    @property
    def closed(self) -> bool:
        """Whether nothing may start."""
        return bool(self._flag[0])

    def admit(self, request: Any) -> None:
        """Start ``request`` or hold it. Takes the place of `_process_task`."""
        while True:
            sure = self._may_start()  # again after each wait, in which the process may have slept
            with self._lock:
                free = not self._flag[0] and not self._held
                if not (free and sure and self._has_place()):
                    if self._blocks and free and not self._has_place():
                        self._room.wait()
                        continue
                    if not (sure and self._exempt(request.name)):
                        self._held.append(request)
                        return
                token = self.tokens.take(request.id, request.name)
                break
        # Outside the lock: on the solo pool this call is the task's body, and a freeze must be able to close.
        self._run(request, token)

    def close(self, *, wake: bool = True) -> None:
        """Start nothing more. When this returns every request that passed has its token.

        ``wake=False`` leaves it to `wake` to have the main loop stop consuming: it would compete with the ack.
        """
        with self._lock:
            self._flag[0] = 1
            self._room.notify_all()
        if wake:
            self._wake()

    def wake(self) -> None:
        """Have the main loop see what changed."""
        self._wake()

    def open(self) -> None:
        """Let requests start again, the held ones first."""
        with self._lock:
            self._flag[0] = 0
        self._wake()

    def let_go(self) -> None:
        """Start what is held, oldest first, as far as allowed. Called on the worker's main loop."""
        while True:
            sure = self._may_start()
            with self._lock:
                if self.closed or not sure or not self._held or not self._has_place():
                    return
                request = self._held.popleft()
                token = self.tokens.take(request.id, request.name)
            self._run(request, token)

    def forget(self) -> None:
        """Drop what is held: the connection that delivered it is gone, and the broker delivers it again."""
        with self._lock:
            self._held.clear()

    def held(self) -> list[Any]:
        """Return the held requests."""
        with self._lock:
            return list(self._held)

    def _run(self, request: Any, token: Any) -> None:
        try:
            self._start(request)
        finally:
            if not token.submitted:  # revoked, expired or rejected before it reached the pool
                self.tokens.release(token)

    def _has_place(self) -> bool:
        return self._places is None or len(self.tokens) < self._places()

    def _on_release(self) -> None:
        if self._blocks:
            with self._lock:
                self._room.notify_all()
        if self.closed:
            self._drained()
        elif self._held:
            self._wake()
