"""Messages in a long freeze: none comes twice, none changes its place, and what was consumed is consumed after."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from celery import Celery

from lych_checkpoint.doctor import OK, WARNING, doctor
from lych_checkpoint.errors import Away
from lych_checkpoint.federation import Federation
from lych_checkpoint.status import hold
from ops.servers.rabbitmq import RabbitNode
from tests.fixtures.rabbitmq import need_rabbitmq
from tests.fixtures.stamps import Yard

Open = Callable[..., Yard]
#: kombu looks every second for messages that were taken and not acknowledged in time.
_EAGER = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}


@pytest.mark.parametrize(("pool", "timeout_s", "freeze_s"), [("prefork", 4, 12), ("gevent", 2, 5)])
def test_freeze_longer_than_the_visibility_timeout_runs_nothing_twice(
    pool: str, timeout_s: float, freeze_s: float, yard: Open
) -> None:
    federation = yard(broker_transport_options={**_EAGER, "visibility_timeout": timeout_s})
    federation.start("one", pool=pool)
    federation.start("two", pool=pool)
    federation.settle(2)
    federation.walks(range(40), 0.1)
    federation.walks(range(40, 60), countdown=freeze_s / 2)
    federation.wait_for("end", 2)
    with federation.freeze():
        federation.walks(range(60, 100))
        time.sleep(freeze_s)
    federation.check_quiet()
    federation.check_once(100)
    time.sleep(1.5)  # a look for old messages later
    federation.check_once(100)


def test_message_that_was_being_fetched_when_the_freeze_came_keeps_its_place(yard: Open, redis_url: str) -> None:
    federation = yard()
    federation.start(pool="solo")
    federation.settle(1)
    aside_url = redis_url.replace("/0", "/1")
    broker, aside = redis.Redis.from_url(redis_url), redis.Redis.from_url(aside_url)
    for first in (0, 50):
        federation.walks(range(first, first + 50), url=aside_url)
        with federation.freeze():
            broker.lpush("celery", *reversed(aside.lrange("celery", 0, -1)))  # all at once
            aside.delete("celery")
            time.sleep(1.3)  # the fetch that was under way is answered within a second
        federation.wait_for("end", first + 50)
    broker.close()
    aside.close()
    federation.check_quiet()
    assert [int(one.tag) for one in federation.stamps("begin")] == list(range(100))


def test_worker_that_rabbitmq_ends_in_a_too_long_freeze_costs_nothing(yard: Open, tmp_path: Path) -> None:
    """Celery 5.7 does not outlive a closed channel. What is started in its place is frozen, and runs all once."""
    need_rabbitmq()
    with RabbitNode.start_new(tmp_path, configuration={"consumer_timeout": "2000"}, tick_ms=500) as node:
        federation = yard(broker=node.url, broker_heartbeat=0)
        worker = federation.start()
        federation.settle(1)
        federation.walks(range(30), 0.2)
        federation.wait_for("end", 2)
        with federation.freeze():
            assert worker.wait_exit() == 1
            assert "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out" in worker.text
            federation.start("next")
            federation.walks(range(30, 40))
            time.sleep(1)
        federation.check_quiet()
        federation.check_once(40)


@pytest.mark.parametrize(("url", "drain_s", "states"), [
    ("redis://localhost:1/0", "60", [OK]), ("amqp://localhost:1//", "60", [OK, OK]),
    ("amqp://localhost:1//", "1795", [OK, WARNING]),
])
def test_doctor_names_what_rabbitmq_must_bear(
    url: str, drain_s: str, states: list[str], opened: Callable[..., Federation]
) -> None:
    with Celery(broker=url, set_as_current=False) as app:
        found = [one for one in doctor(opened(LYCH_DRAIN_TIMEOUT_S=drain_s), app) if one.check == "broker"]
    assert [one.state for one in found] == states
    assert all("consumer_timeout" in one.what for one in found[1:])


@pytest.mark.parametrize(("url", "for_s", "warned"), [
    ("amqp://localhost:1//", 1800, True), ("amqp://localhost:1//", 1700, False),
    ("redis://localhost:1/0", 1800, False),
])
def test_freeze_longer_than_rabbitmqs_consumer_timeout_is_warned_of(
    url: str, for_s: float, warned: bool, opened: Callable[..., Federation], caplog: pytest.LogCaptureFixture
) -> None:
    federation = opened()
    with Celery(broker=url, set_as_current=False) as app, pytest.raises(Away):  # nobody listens at that address
        hold(federation, for_s, "a test", app)
    assert ("consumer_timeout" in caplog.text) is warned
