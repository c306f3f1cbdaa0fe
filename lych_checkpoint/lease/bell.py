"""The plugin's own bell: a Redis channel that wakes listeners. It carries no truth; the lease does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import redis

from lych_checkpoint.lease.connection import Store

#: How often ``unless`` is asked: a worker that ends waits no longer than this for its listener.
_GLANCE_S = 0.2


class Bell:
    """A subscription that survives lost connections; use it as a context manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channel: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def wait(self, longest_s: float, unless: Callable[[], bool] = lambda: False) -> str:
        """Block until the bell rings, ``longest_s`` have passed, or soon after ``unless``; return its words or "".

        Without a connection it sleeps that long instead: polling the lease still works then, only slower.
        """
        end_s = time.monotonic() + longest_s
        try:
            if self._channel is None:
                channel: Any = self._store.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                channel.subscribe(self._store.keys["bell"])
                self._channel = channel
            while (left_s := end_s - time.monotonic()) > 0 and not unless():
                if (message := self._channel.get_message(timeout=min(left_s, _GLANCE_S))) is not None:
                    return str(message["data"])
        except (redis.RedisError, OSError):
            self._close()
            time.sleep(max(0.0, end_s - time.monotonic()))
        return ""

    def _close(self) -> None:
        if self._channel is not None:
            try:
                self._channel.close()
            except (redis.RedisError, OSError):
                self._channel = None
        self._channel = None
