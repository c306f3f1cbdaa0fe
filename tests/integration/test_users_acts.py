"""What a user tells workers to do while they are frozen: it is done, nothing runs for it, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from ops.servers.rabbitmq import RabbitNode
from tests.fixtures.client import wait_until
from tests.fixtures.stamps import Yard

Open = Callable[..., Yard]


def tell(federation: Yard, act: str, **arguments: object) -> None:
    """Have every worker do it, and fail unless each says that it did."""
    answers = federation.app.control.broadcast(act, arguments=arguments, reply=True, timeout=5, limit=1)
    assert answers
    assert all("ok" in answer for reply in answers for answer in reply.values()), answers


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_queues_are_added_and_cancelled_in_a_freeze(pool: str, yard: Open) -> None:
    _change_queues(yard(), pool)


def test_queues_are_added_and_cancelled_in_a_freeze_over_rabbitmq(yard: Open, rabbit_node: RabbitNode) -> None:
    _change_queues(yard(broker=rabbit_node.url, broker_heartbeat=0), "prefork")


def _change_queues(federation: Yard, pool: str) -> None:
    federation.start(pool=pool, options=("-Q", "celery,old"))
    federation.settle(1)
    federation.walks(range(6), 0.1)
    federation.wait_for("end", 2)
    with federation.freeze():
        federation.walks(range(10, 20))
        tell(federation, "add_consumer", queue="new")
        tell(federation, "cancel_consumer", queue="old")
        federation.walks(range(20, 30), queue="new")
        time.sleep(1.5)  # Celery answers before it cancels; on green pools that takes a fetch's second, frozen or not
        federation.walks(range(30, 40), queue="old")
        time.sleep(0.5)
    federation.check_quiet()
    federation.check_once(26)
    assert {int(one.tag) for one in federation.stamps("end")} == {*range(6), *range(10, 30)}
    assert federation.consumed() == {"one@local": {"celery", "new"}}
    tell(federation, "add_consumer", queue="old")
    federation.check_once(36)


def test_autoscaler_starts_nothing_in_a_freeze(yard: Open) -> None:
    federation = yard()
    federation.start(options=("--autoscale", "5,1"))
    federation.settle(1)
    federation.walks(range(12), 0.3)
    federation.wait_for("end", 2)
    with federation.freeze():
        federation.walks(range(12, 40), 0.05)
        tell(federation, "autoscale", max=6, min=2)
        time.sleep(2)
    federation.check_quiet()
    federation.check_once(40)


def test_pool_is_restarted_in_a_freeze(yard: Open) -> None:
    federation = yard(worker_pool_restarts=True)
    federation.start()
    federation.settle(1)
    federation.walks(range(12), 0.2)
    federation.wait_for("end", 2)
    with federation.freeze():
        federation.walks(range(12, 30))
        tell(federation, "pool_restart", reload=False)
        time.sleep(1)
    federation.check_quiet()
    federation.check_once(30)
    with federation.freeze(drain_s=5):  # and no token is left over
        pass


@pytest.mark.parametrize(("pool", "number", "acks_late"), [
    ("prefork", signal.SIGTERM, False), ("prefork", signal.SIGQUIT, True), ("gevent", signal.SIGTERM, False),
])
def test_worker_is_shut_down_in_a_freeze(
    pool: str, number: signal.Signals, acks_late: bool, yard: Open
) -> None:
    federation = yard(task_acks_late=acks_late, worker_soft_shutdown_timeout=3.0)
    one = federation.start("one", pool=pool)
    federation.start("two", pool=pool)
    federation.settle(2)
    federation.walks(range(30), 0.1)
    federation.wait_for("end", 4)
    with federation.freeze():
        federation.walks(range(30, 40))
        one.send(number)
        assert one.wait_exit(20) == 0
        time.sleep(0.5)
    federation.check_quiet()
    federation.check_once(40)
    wait_until(lambda: federation.consumed() == {"two@local": {"celery"}})
