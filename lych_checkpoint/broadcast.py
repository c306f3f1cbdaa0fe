"""The control bell from the coordinator's side, and what the broker can tell about workers."""

from __future__ import annotations

import logging
from typing import Any

from lych_checkpoint.errors import Away, Refused
from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store

logger = logging.getLogger(__name__)

#: Name of the control command that `worker.control` answers.
BELL = "checkpoint_bell"
#: How long workers that are not in the roster may take to answer a ping, before the freeze.
_PING_S = 0.5
#: How long those that answered may take to say whose they are; it ends as soon as all have.
_STATE_S = 3.0
#: How long the broker may take to be connected.
_CONNECT_S = 5

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
    """Ring the control bell; a broker that is away is only logged, for the other bell and the lease remain."""
    try:
        app.control.broadcast(BELL, arguments={"uuid": uuid, "act": act, "epoch": epoch}, reply=False)
    except Exception as error:  # noqa: BLE001 - kombu raises whatever its transport's library raises
        logger.warning("The control bell could not be rung: %s", error, extra={"event": "bell.silent"})


def send(app: Any, task: str, arguments: dict[str, Any]) -> str:
    """Publish a task and return its id.

    Raises:
        Away: the broker cannot be reached.
    """
    try:
        return str(app.send_task(task, kwargs=arguments, retry=False).id)
    except Exception as error:
        raise _away(error) from error


def refuse_strangers(app: Any, store: Store) -> None:
    """Make sure that every worker of this app is in the roster: no other would freeze.

    Raises:
        Refused: one answers ping and is not (code ``stranger``).
        Away: broker or Redis cannot be reached.
    """
    found = strangers(app, {entry.name for entry in roster.entries(store).values()}, store.keys.uuid)
    if found:
        raise Refused(
            f"the worker {min(found)} answers ping and is not in the roster: it would not freeze",
            "workers", "start it with lych_checkpoint.install(app), or stop it", "stranger",
        )


def strangers(app: Any, known: set[str], uuid: str) -> set[str]:
    """Return the names of workers that answer a ping, are not ``known``, and belong to no other federation.

    Raises:
        Away: the broker cannot be reached.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_S)
            unknown = _names(app.control.ping(timeout=_PING_S, connection=connection)) - known
            answers = [] if not unknown else app.control.broadcast(
                "checkpoint_state", reply=True, timeout=_STATE_S, limit=len(unknown), connection=connection,
                destination=sorted(unknown))
    except Exception as error:
        raise _away(error) from error
    return unknown - _names([answer for answer in answers if all(
        state.get("federation", uuid) != uuid for state in answer.values())])


def _names(replies: list[dict[str, Any]]) -> set[str]:
    return {name for reply in replies for name in reply}


def _away(error: Exception) -> Away:
    """Name the cause: kombu raises whatever its transport's library raises."""
    return Away(f"the broker cannot be reached: {error}", "broker", "start the broker", "broker-away")
