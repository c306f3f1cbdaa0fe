"""The matrix's cells: every pool over every broker with early and late acknowledgement."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")
BROKERS = ("redis", "rabbitmq classic", "rabbitmq quorum")
ACKS = ("early", "late")
CONCURRENCY = {"prefork": 2, "threads": 4, "solo": 1, "gevent": 4, "eventlet": 4}


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination."""

    pool: str
    broker: str
    ack: str

    def __str__(self) -> str:
        return f"{self.pool}, {self.broker}, {self.ack}"

    @property
    def name(self) -> str:
        """One plain word."""
        return str(self).replace(", ", "-").replace(" ", "-")

    @property
    def is_quorum(self) -> bool:
        """Whether its queues are quorum queues."""
        return self.broker == "rabbitmq quorum"

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that its two workers consume: on solo one each, for there Celery keeps the order."""
        return (f"{self.name}-one", f"{self.name}-two") if self.pool == "solo" else (self.name,)

    def configuration(self, broker_url: str) -> dict[str, Any]:
        """Return the settings of Celery that publisher and workers share."""
        return {
            "broker_url": broker_url,
            "broker_connection_retry_on_startup": True,
            # Without it RabbitMQ 3.10 lost the last ETA tasks of a connection that closed at once, on a busy machine,
            # and without workers or the plugin too.
            "broker_transport_options": {} if self.broker == "redis" else {"confirm_publish": True},
            # With heartbeats a green worker of Celery 5.7 takes ten messages a second from RabbitMQ, no more: after
            # each it waits 0.1 s for a heartbeat on the events' connection.
            "broker_heartbeat": 0 if self.pool in ("gevent", "eventlet") else 120,
            "task_acks_late": self.ack == "late",
            "task_default_exchange": self.name,
            # The publisher of a quorum queue's ETA tasks has RabbitMQ delay them, which needs a topic exchange.
            "task_default_exchange_type": "topic" if self.is_quorum else "direct",
            "task_default_queue_type": "quorum" if self.is_quorum else "classic",
            "task_default_queue": self.queues[0],
            "task_default_routing_key": self.queues[0],
            "task_ignore_result": True,
            "worker_prefetch_multiplier": 4,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
        }


def every() -> list[Cell]:
    """Return all cells."""
    return [Cell(*values) for values in itertools.product(POOLS, BROKERS, ACKS)]


def pairwise(most: int, seed: int) -> list[Cell]:
    """Return at most ``most`` cells that cover as many pairs of values as so many can, greedily."""
    cells = every()
    random.Random(seed).shuffle(cells)
    open_pairs = set().union(*map(_pairs, cells))
    chosen: list[Cell] = []
    while open_pairs and len(chosen) < most:
        seen = {(cell.pool, cell.broker) for cell in chosen}
        pools = {pool for pool, _ in seen}
        best = max(cells, key=lambda cell: (cell.pool not in pools, len(_pairs(cell) & open_pairs)))
        chosen.append(best)
        cells.remove(best)
        open_pairs -= _pairs(best)
    return chosen


def _pairs(cell: Cell) -> set[tuple[str, str]]:
    return set(itertools.combinations((cell.pool, cell.broker, cell.ack), 2))
