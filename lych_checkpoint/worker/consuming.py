"""The step that `install` adds to Celery's consumer: its consumers and what they fetched follow the barrier."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.worker import consumers, visibility
from lych_checkpoint.worker.barrier import Barrier
from lych_checkpoint.worker.member import Member

logger = logging.getLogger(__name__)


class Consuming(bootsteps.StartStopStep):
    """The consumer's side: looks at the lease before anything is consumed, and after every reconnect."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.control:Control")

    def __init__(self, consumer: Any, **_: Any) -> None:
        consumer.lych_cancelled = False
        self._connections = 0
        self._unreturned: list[str] = []

    def start(self, consumer: Any) -> None:
        """Look at lease and generation; the main loop begins to consume only after this."""
        member: Member = consumer.controller.lych_member
        barrier = member.barrier
        assert barrier is not None  # noqa: S101 - Membership made it
        consumer.lych_cancelled = False
        self._unreturned = visibility.give_back(consumer, self._unreturned)
        try:
            if self._connections:
                member.connection_renewed()
            else:
                member.look()
        except CheckpointError as error:
            logger.warning("Starting no task until the lease can be read: %s", error)
            barrier.close()
        self._connections += 1
        if barrier.closed:
            barrier.close()  # wakes the main loop, which then cancels the new consumers
        self._keep(consumer, barrier, self._connections)

    def stop(self, consumer: Any) -> None:
        """Forget what the lost connection delivered; the broker delivers it again."""
        self._connections += 1
        self._unreturned += visibility.unreturned(consumer)
        member = consumer.controller.lych_member
        if member is None:
            return
        member.barrier.forget()
        pool = getattr(consumer.pool, "_pool", None)
        if pool is not None and hasattr(pool, "_cache"):
            member.barrier.tokens.reconcile(pool)

    def _keep(self, consumer: Any, barrier: Barrier, connection: int) -> None:
        """Do in a freeze, again and again for as long as one connection lasts, what a broker needs to keep it."""
        every_s = visibility.every_s(consumer)
        if connection != self._connections or every_s is None:
            return
        if barrier.closed:
            _fetch_unless_closed(consumer.controller, consumer, barrier)
        consumer.timer.call_after(every_s, self._keep, (consumer, barrier, connection))


def settle(worker: Any) -> None:
    """Bring consumers and held requests into line with the barrier. Called where Celery starts tasks."""
    barrier: Barrier = worker.lych_member.barrier
    consumer = getattr(worker, "consumer", None)
    if consumer is not None:
        _fetch_unless_closed(worker, consumer, barrier)
    barrier.let_go()


def _fetch_unless_closed(worker: Any, consumer: Any, barrier: Barrier) -> None:
    if barrier.closed:
        visibility.refresh(consumer)
    if not worker.use_eventloop:  # green pools: kombu would cancel only after the fetch that is under way
        return
    if barrier.closed:
        consumers.cancel(consumer)
    else:
        consumers.renew(consumer)
