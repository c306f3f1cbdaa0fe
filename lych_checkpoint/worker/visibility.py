"""Keeps a Redis broker from delivering a frozen worker's messages a second time, or an hour too late.

kombu's Redis transport gives a message that was not acknowledged within the visibility timeout to somebody else. A
worker cannot acknowledge what its barrier holds, so a freeze longer than that would run every held task twice.

When a connection is lost, kombu gives back what the worker had taken, but over that same connection: where the server
was restarted this fails, and the messages wait for the visibility timeout, an hour by default.
"""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger(__name__)

_LONGEST_S = 5.0


def every_s(consumer: Any) -> float | None:
    """Return how often to `refresh` in a freeze, in seconds; None where the broker has no visibility timeout."""
    qos = _qos(consumer)
    return None if qos is None else min(_LONGEST_S, float(qos.visibility_timeout) / 4)


def refresh(consumer: Any) -> None:
    """Make every message that this worker took and has not acknowledged as fresh as if it came now.

    Held, ETA and rate-limited ones. To be called on the main loop, which owns that list. One that was acknowledged or
    delivered elsewhere in the meantime stays gone.
    """
    qos = _qos(consumer)
    if qos is None:
        return
    now_s = time.time()  # kombu's own clock for it
    taken = dict.fromkeys(list(qos._delivered), now_s)  # noqa: SLF001 - held requests alone would leave out ETA ones
    if not taken:
        return
    try:
        with qos.channel.conn_or_acquire() as client:
            client.zadd(qos.unacked_index_key, taken, xx=True)
    except consumer.connection_errors + consumer.channel_errors as error:
        logger.debug("The broker is away; messages are delivered again after the reconnect: %s", error)


def unreturned(consumer: Any) -> list[str]:
    """Return the messages, oldest first, that kombu could not give back when the connection was lost."""
    qos = _qos(consumer)
    return [] if qos is None else list(qos._delivered)  # noqa: SLF001 - emptied where giving back worked


def give_back(consumer: Any, tags: list[str]) -> list[str]:
    """Finish over the new connection what kombu could not do over the lost one, at the head of their queues.

    Returns those that have to wait for the next connection. One that was delivered elsewhere meanwhile stays there.
    """
    qos, left = _qos(consumer), list(tags)
    try:
        while qos is not None and left:
            qos.restore_by_tag(left[-1])  # the oldest comes last, and so to the very head
            left.pop()
    except consumer.connection_errors + consumer.channel_errors as error:
        logger.debug("The broker is away again, %d messages are still to be given back: %s", len(left), error)
    return left


def _qos(consumer: Any) -> Any:
    """Return what counts unacknowledged messages, if the broker is a Redis."""
    qos = getattr(getattr(consumer.task_consumer, "channel", None), "qos", None)
    return qos if hasattr(qos, "unacked_index_key") else None
