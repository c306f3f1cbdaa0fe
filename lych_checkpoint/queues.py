"""The broker's queues, asked from outside a worker: how much waits in each, and how a message gets back into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lych_checkpoint.errors import Away, Refused
from lych_checkpoint.vault.quarantine import Message

#: How long the broker may take to be connected.
_CONNECT_S = 5
#: How long workers may take to say what they consume.
_ACTIVE_S = 0.5
_CONFIRM = "confirm_publish"
#: AMQP's answer to a message that no queue takes.
_NO_ROUTE = 312

Send = Callable[[Message, dict[str, Any]], None]


def waiting(app: Any) -> dict[str, int]:
    """Return how many messages wait in each queue that the app or a worker of it names.

    Those that workers hold already, for their time to come say, are not among them.

    Raises:
        Away: the broker cannot be reached.
    """
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_S)
            active = app.control.inspect(timeout=_ACTIVE_S, connection=connection).active_queues() or {}
            names = {*app.amqp.queues, *(queue["name"] for queues in active.values() for queue in queues)}
            return {name: _count(connection, name) for name in sorted(names)}
    except Exception as error:
        raise _away(error) from error


@contextmanager
def sending(app: Any) -> Iterator[Send]:
    """Give what publishes a message where it was published first, with the headers given.

    It returns when the broker has the message.

    Raises:
        Away: the broker cannot be reached.
        Refused: no queue takes this message (code ``no-route``).
    """
    given = app.connection_for_write()
    with given.clone(transport_options={**given.transport_options, _CONFIRM: True}) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_S)
            producer = connection.Producer(auto_declare=False)
        except Exception as error:
            raise _away(error) from error

        def send(message: Message, headers: dict[str, Any]) -> None:
            properties = dict(message.properties)
            if "expiration" in properties:
                properties["expiration"] = float(properties["expiration"]) / 1000  # kombu takes s and sends ms
            try:
                producer.publish(
                    message.body, exchange=message.exchange, routing_key=message.routing_key, headers=headers,
                    content_type=message.content_type or "application/data",
                    content_encoding=message.content_encoding or "binary", mandatory=True, **properties)
            except Exception as error:
                if getattr(error, "reply_code", None) == _NO_ROUTE:
                    raise Refused(f"no queue takes the message {message.id} for {message.queue}", "broker",
                                  "start a worker that consumes it", "no-route") from error
                raise _away(error) from error

        yield send


def _count(connection: Any, name: str) -> int:
    with connection.channel() as channel:  # one each: RabbitMQ closes it where there is no such queue
        try:
            return int(channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors:
            return 0


def _away(error: Exception) -> Away:
    """Name the cause: kombu raises whatever its transport's library raises."""
    return Away(f"the broker cannot be reached: {error}", "broker", "start the broker", "broker-away")
