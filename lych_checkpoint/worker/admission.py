"""Admission: a message that is not of this present is put aside instead of run.

It stands before the barrier and before prefork's semaphore, at the function that immediate, ETA and rate-limited
requests pass on every pool, so what is put aside never takes a place. What is of this present does not change while a
worker lives: a restore ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from celery.worker.state import task_ready

from lych_checkpoint.eras import Present, Stamp
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.vault.quarantine import Message, Quarantine

logger = logging.getLogger(__name__)

#: What a publisher may say of a message beyond its headers; the rest is the transport's own.
_PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration", "message_id", "timestamp",
               "type", "app_id")
#: How RabbitMQ's own headers begin, which speak of one delivery.
_BROKERS = ("x-death", "x-first-death", "x-last-death", "x-delivery-count")


class Admission:
    """Asks each request where it belongs.

    Args:
        pass_on: Celery's own `process_task`, or the barrier in its place.
        present: this worker's.
        header: the header that has the stamp.
        quarantine: where the others go.
        leave: called with the reason when a message can be neither run nor kept.
    """

    def __init__(self, pass_on: Callable[[Any], Any], *, present: Present, header: str, quarantine: Quarantine,
                 leave: Callable[[str], None]) -> None:
        self._pass_on, self._present, self._header = pass_on, present, header
        self._quarantine, self._leave = quarantine, leave

    def admit(self, request: Any) -> None:
        """Pass ``request`` on, or put its message aside and only then acknowledge it. In place of `process_task`."""
        stamp = Stamp.loads(request.message.headers.get(self._header))
        why = self._present.refusal(stamp)
        if not why:
            self._pass_on(request)
            return
        try:
            self._quarantine.put(_described(request, why))
        except CheckpointError as error:
            # Not acknowledged: the broker has it again as soon as this worker has left.
            self._leave(f"the message {request.id} of {request.name} cannot be put aside: {error}")
            return
        request.acknowledge()
        task_ready(request)
        request.send_event("task-rejected", requeue=False)
        logger.warning("Put aside %s[%s]: %s", request.name, request.id, why,
                       extra={"event": "message.quarantined", "task": request.name, "task_id": request.id})


def _described(request: Any, why: str) -> Message:
    message, info = request.message, request.delivery_info
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    routing_key = str(info.get("routing_key") or "")
    headers = {name: value for name, value in message.headers.items()
               if name != "compression" and not name.startswith(_BROKERS)}  # kombu has decompressed it already
    return Message(
        id=str(request.id), task=str(request.name), queue=_queue(request, routing_key),
        exchange=str(info.get("exchange") or ""), routing_key=routing_key,
        content_type=str(message.content_type or ""), content_encoding=str(message.content_encoding or ""),
        headers=headers, properties={name: message.properties[name] for name in _PROPERTIES
                                     if message.properties.get(name) is not None},
        body=body, retries=int(message.headers.get("retries") or 0), why=why,
        at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    )


def _queue(request: Any, routing_key: str) -> str:
    """Return the queue that routes so in the worker's configuration."""
    exchange = request.delivery_info.get("exchange") or ""
    for name, queue in request.app.amqp.queues.items():
        if queue.routing_key == routing_key and (queue.exchange.name if queue.exchange else "") == exchange:
            return str(name)
    return routing_key
