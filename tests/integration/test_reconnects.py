"""Connections that are lost in a freeze: the worker stays frozen, thaws when told, and runs everything once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import redis

from lych_checkpoint.lease import roster
from ops.servers.rabbitmq import RabbitNode
from tests.fixtures.client import wait_until
from tests.fixtures.stamps import Yard

Open = Callable[..., Yard]
GREEN = ("gevent", "eventlet")
POOLS = ("prefork", "threads", "solo", *GREEN)


def cut_all(url: str) -> None:
    """End every connection that a Redis has but this one."""
    with redis.Redis.from_url(url) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def check_consumes(federation: Yard, pool: str, before: dict[str, set[str]]) -> None:
    """Fail unless the worker consumes what it did before."""
    if pool not in GREEN:
        assert federation.consumed() == before
        return
    # Celery's remote control does not outlive a cut connection on green pools, so nobody answers there; it need not.
    federation.walks(range(1000, 1010))
    wait_until(lambda: {str(tag) for tag in range(1000, 1010)} <= {one.tag for one in federation.stamps("end")})


@pytest.mark.parametrize("pool", POOLS)
def test_every_connection_is_cut_in_a_freeze(pool: str, yard: Open, redis_url: str) -> None:
    """All hear the thaw, those without remote control too: their lease would have lasted for 40 s more at least."""
    federation = yard(task_acks_late=True, lease_s=60)
    federation.start(pool=pool)
    federation.settle(1)
    consumed = federation.consumed()
    federation.walks(range(20), 0.1)
    federation.walks(range(20, 24), countdown=2)
    federation.wait_for("end", 2)
    with federation.freeze():
        federation.walks(range(24, 60))
        # Under eventlet kombu's own poller ends the worker at the second cut: "Second simultaneous read on fileno".
        for _ in range(1 if pool == "eventlet" else 2):
            cut_all(redis_url)
            time.sleep(1.5)
    store = federation.federation.store()
    wait_until(lambda: {entry.state for entry in roster.entries(store).values()} == {"thawed"}, 15)
    federation.check_quiet()
    wait_until(lambda: federation.stamps()[-1].at > federation.windows[-1].ended_at, 15)
    federation.check_once(60)
    check_consumes(federation, pool, consumed)


@pytest.mark.timeout(400)  # five workers and a RabbitMQ start, twice
def test_rabbitmq_is_killed_and_started_again_in_a_freeze(yard: Open, rabbit_node: RabbitNode) -> None:
    """On every pool at once, each with a queue of its own."""
    federation = yard(broker=rabbit_node.url, task_acks_late=True, broker_heartbeat=0,
                      broker_transport_options={"confirm_publish": True})
    started = [federation.start(pool, pool=pool, options=("-Q", pool), wait=False) for pool in POOLS]
    for worker in started:
        worker.wait_ready(90)
    federation.settle(len(POOLS))
    consumed = federation.consumed()
    assert consumed == {f"{pool}@local": {pool} for pool in POOLS}

    def publish(first: int, count: int, seconds: float = 0.0) -> None:
        for number, pool in enumerate(POOLS):
            federation.walks(range(100 * number + first, 100 * number + first + count), seconds, queue=pool)

    publish(0, 12, 0.1)
    federation.wait_for("end", 2 * len(POOLS))
    with federation.freeze():
        publish(12, 12)
        rabbit_node.kill()
        time.sleep(1)
        rabbit_node.start()
        time.sleep(2)
        publish(24, 12)
    federation.check_quiet()
    federation.check_once(36 * len(POOLS))
    for pool in POOLS:
        if pool in GREEN:  # nobody answers there any more; see check_consumes
            del consumed[f"{pool}@local"]
    assert {name: queues for name, queues in federation.consumed().items() if name in consumed} == consumed
    publish(36, 4)
    federation.wait_for("end", 40 * len(POOLS))
    for worker in started:
        worker.send(signal.SIGKILL)  # after a lost connection some take long to leave


@pytest.mark.parametrize("then", [signal.SIGCONT, signal.SIGKILL])
def test_job_that_celery_forgot_is_waited_for(then: signal.Signals, yard: Open, redis_url: str) -> None:
    """It lies in the pipe to a child; when that one is killed, its successor takes the pipe over and runs the job."""
    federation = yard()
    federation.start(concurrency=1)
    federation.settle(1)
    federation.walks(range(1))
    federation.wait_for("end", 1)
    child = federation.stamps("end")[0].pid
    os.kill(child, signal.SIGSTOP)
    federation.walks(range(1, 2), 0.5)
    time.sleep(1)  # nobody tells when it lies there
    cut_all(redis_url)
    wait_until(federation.consumed)
    later = threading.Timer(1, os.kill, (child, then))
    later.start()
    with federation.freeze():
        assert {one.tag for one in federation.stamps("end")} == {"0", "1"}  # perhaps twice: it is delivered again
        time.sleep(1)
    later.join()
    federation.check_quiet()
    with federation.freeze(drain_s=2):
        pass


def test_connections_are_cut_while_children_are_being_replaced(yard: Open, redis_url: str) -> None:
    """A job that Celery forgot with its connection, yet that a child was being given, is counted until it ends."""
    federation = yard(worker_max_tasks_per_child=1)
    federation.start(concurrency=3)
    federation.settle(1)
    federation.walks(range(16), 0.3)
    for number in range(2):
        federation.wait_for("begin", 2 + 3 * number)
        cut_all(redis_url)
        time.sleep(0.5)
        with federation.freeze():
            time.sleep(1)
    federation.wait_for("end", 14)  # kombu may lose the messages whose reply was under way
    federation.check_quiet()
    with federation.freeze(drain_s=5):  # and no token is left over
        pass
