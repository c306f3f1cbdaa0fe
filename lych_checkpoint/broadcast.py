"""The control bell from the coordinator's side, and what the broker can tell about workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from lych_checkpoint.errors import Away, Refused

logger = logging.getLogger(__name__)

#: Name of the control command that `worker.control` answers.
BELL = "checkpoint_bell"
#: How long workers that are not in the roster may take to answer a ping, before the freeze.
_PING_S = 0.5
#: How long those that answered may take to say whose they are; it ends as soon as all have.
_STATE_S = 3.0
#: How long a freeze waits for the control bell to be rung.
_RING_S = 0.2
#: How long the broker may take to be connected, and to take or give one message.
_CONNECT_S = 5
_ANSWER_S = 5

#: After so long RabbitMQ closes the channel of a consumer that has not acknowledged, and Celery 5.7's worker ends
#: with it. RabbitMQ's default since 3.8.17.
CONSUMER_TIMEOUT_S = 1800


def check_fanout(app: Any) -> None:
    """Make sure that the broker can carry a broadcast.

    Raises:
        Refused: its transport has no fanout exchange, so no worker could hear the control bell, and workers
            without the plugin could not be found.
    """
    transport = app.connection_for_write().transport
    if "fanout" not in transport.implements.exchange_type:
        raise Refused(
            f"the broker's transport {transport.driver_type!r} has no fanout: a freeze cannot be broadcast",
            "broker", "use Redis or RabbitMQ as the broker", "no-fanout",
        )


def takes_back(app: Any) -> bool:
    """Return whether the broker takes back what a worker holds for too long, as RabbitMQ does (consumer_timeout)."""
    return str(app.connection_for_write().transport.driver_type) == "amqp"


def ring(app: Any, uuid: str, act: str, epoch: int) -> None:
    """Ring the control bell; a broker that is away is only logged, for the other bell and the lease remain.

    Workers are frozen, so a slow broker is soon left alone with it.
    """
    def call() -> None:
        try:
            app.control.broadcast(BELL, arguments={"uuid": uuid, "act": act, "epoch": epoch}, reply=False)
        except Exception as error:  # noqa: BLE001 - kombu raises whatever its transport's library raises
            logger.warning("The control bell could not be rung: %s", error, extra={"event": "bell.silent"})

    if not _done_in(_RING_S, call):
        logger.warning("The control bell is not rung yet, the broker is slow", extra={"event": "bell.slow"})


def send(app: Any, task: str, arguments: dict[str, Any]) -> str:
    """Publish a task and return its id.

    Raises:
        Away: the broker cannot be reached.
    """
    try:
        return str(app.send_task(task, kwargs=arguments, retry=False).id)
    except Exception as error:
        raise _away(error) from error


def strangers(app: Any, known: set[str], uuid: str) -> set[str]:
    """Return the names of workers that answer a ping, are not ``known``, and belong to no other federation.

    Raises:
        Away: the broker cannot be reached, or stands still.
    """
    unknown, answers, failed = set[str](), list[dict[str, Any]](), list[Exception]()

    def call() -> None:
        try:
            with app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=_CONNECT_S)
                unknown.update(_names(app.control.ping(timeout=_PING_S, connection=connection)) - known)
                answers.extend([] if not unknown else app.control.broadcast(
                    "checkpoint_state", reply=True, timeout=_STATE_S, limit=len(unknown), connection=connection,
                    destination=sorted(unknown)))
        except Exception as error:  # noqa: BLE001 - kombu raises whatever its transport's library raises
            failed.append(error)

    if not _done_in(_CONNECT_S + _PING_S + _STATE_S + _ANSWER_S, call):
        raise _away(TimeoutError("it takes connections and does not answer"))
    if failed:
        raise _away(failed[0]) from failed[0]
    return unknown - _names([answer for answer in answers if all(
        state.get("federation", uuid) != uuid for state in answer.values())])


def _done_in(limit_s: float, call: Callable[[], None]) -> bool:
    """Return whether it was done in that time; else it goes on alone.

    kombu waits for ever for a broker that stands still.
    """
    calling = threading.Thread(target=call, name="lych-broker", daemon=True)
    calling.start()
    calling.join(limit_s)
    return not calling.is_alive()


def _names(replies: list[dict[str, Any]]) -> set[str]:
    return {name for reply in replies for name in reply}


def _away(error: Exception) -> Away:
    """Name the cause: kombu raises whatever its transport's library raises."""
    return Away(f"the broker cannot be reached: {error}", "broker", "start the broker", "broker-away")
