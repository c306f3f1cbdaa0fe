"""The worker's consumers in a freeze: cancelled, and afterwards exactly those that were.

Only an optimisation: the barrier is what freezes. But a message that is never fetched is not held by a worker that
might die, so a kill -9 during a freeze costs nobody a visibility timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import virtual

logger = logging.getLogger(__name__)


def cancel(consumer: Any) -> None:
    """Fetch nothing more. A consumer that a user added in the freeze is cancelled too, by the next call."""
    tasks = consumer.task_consumer
    if tasks is None or not any(map(tasks.consuming_from, tasks.queues)):
        return
    consumer.lych_cancelled = True
    with _connection_may_be_lost(consumer):
        kept = _deliveries(tasks)
        tasks.cancel()
        # A fetch that is under way may still bring a message. Without its callback kombu would put that message back
        # at the end of the queue, behind all that was published since; with it the barrier holds it, in its place.
        for queue, deliver in kept.items():
            tasks.channel.connection._callbacks.setdefault(queue, deliver)  # noqa: SLF001


def renew(consumer: Any) -> None:
    """Undo `cancel`: fetch from every queue that is the consumer's now, for users may have changed them since."""
    if not consumer.lych_cancelled:
        return
    consumer.lych_cancelled = False
    with _connection_may_be_lost(consumer):
        consumer.task_consumer.consume()


def _deliveries(tasks: Any) -> dict[str, Any]:
    if not isinstance(tasks.channel, virtual.Channel):  # AMQP: the server sends nothing after it confirmed
        return {}
    callbacks: dict[str, Any] = tasks.channel.connection._callbacks or {}  # noqa: SLF001 - there is no other door
    return {queue.name: callbacks[queue.name] for queue in tasks.queues if queue.name in callbacks}


@contextmanager
def _connection_may_be_lost(consumer: Any) -> Iterator[None]:
    try:
        yield
    except consumer.connection_errors + consumer.channel_errors as error:
        logger.debug("The consumers' connection is lost; the reconnect sets them right: %s", error)
