"""The brokers of a run, and how Celery is told of them: workers, load and coordinators must agree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ops.servers.rabbitmq import RabbitNode
from ops.servers.redis import RedisNode

REDIS, CLASSIC, QUORUM = "redis", "rabbitmq-classic", "rabbitmq-quorum"
Node = RedisNode | RabbitNode


def kinds(asked: str, seed: int) -> list[str]:
    """Return the brokers to run on, for ``redis``, ``rabbitmq`` or ``both``; the seed chooses RabbitMQ's queues."""
    rabbit = random.Random(f"queues {seed}").choice([CLASSIC, QUORUM])
    return {"redis": [REDIS], "rabbitmq": [rabbit], "both": [REDIS, rabbit]}[asked]


@contextmanager
def started(kind: str, directory: Path) -> Iterator[Node]:
    """Start the broker for the body of the `with`."""
    with RedisNode.start_new(directory) if kind == REDIS else RabbitNode.start_new(directory) as node:
        yield node


def configuration(kind: str) -> dict[str, Any]:
    """Return Celery's settings, the URL aside, for whoever publishes and whoever consumes.

    Only what the broker confirmed is owed; and a message that a dead worker had taken must come back in a run's time.
    """
    quick = {"visibility_timeout": 10, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    return {
        "broker_transport_options": quick if kind == REDIS else {"confirm_publish": True},
        # Celery 5.7 raises a lowered prefetch again from the threads pool's threads: two then read one connection.
        # After such a reconnect a threads worker once took nothing more, while thawed; see docs/design.md.
        "worker_enable_prefetch_count_reduction": kind == REDIS,
        "task_default_queue_type": "quorum" if kind == QUORUM else "classic",
        # Celery has RabbitMQ delay a quorum queue's messages, and binds its queue for that: a topic exchange.
        "task_default_exchange_type": "topic" if kind == QUORUM else "direct",
    }


def connections_lose_messages(kind: str) -> bool:
    """Whether a torn connection may lose one: kombu's Redis transport pops a message before it registers it."""
    return kind == REDIS
