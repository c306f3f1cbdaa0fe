"""A freeze across worker nodes, in local processes and in containers: the same tests."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis
from pytest_celery.api.setup import CeleryTestSetup

from lych_checkpoint.federation import Federation
from lych_checkpoint.status import hold, status, thaw
from tests.fixtures.apps import ENDS, STARTS
from tests.fixtures.client import publish, wait_until
from tests.fixtures.opened import wait_for_workers

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(opened: Callable[..., Federation], celery_setup: CeleryTestSetup) -> Federation:
    """The federation, both nodes in its roster."""
    made = opened()
    wait_for_workers(made, 2)
    return made


def tags(url: str, key: str) -> list[Any]:
    """The tags of what tasks noted."""
    with redis.Redis.from_url(url) as client:
        return [json.loads(line)["tag"] for line in client.lrange(key, 0, -1)]


def states(federation: Federation) -> dict[str, str]:
    """Every worker's state by its name."""
    return {worker["name"]: worker["state"] for worker in status(federation)["workers"]}


def test_nodes_freeze_and_thaw_together(
    federation: Federation, celery_setup: CeleryTestSetup, redis_url: str
) -> None:
    publish(redis_url, 20)
    assert hold(federation, 60, "a test", celery_setup.app)["state"] == "frozen"
    before = len(tags(redis_url, STARTS))
    # A worker says its state with its heartbeat, twice a second; the drain itself was heard at once.
    wait_until(lambda: states(federation) == {"one@local": "frozen", "two@local": "frozen"}, 2)
    publish(redis_url, 300, first=100)
    time.sleep(1)
    assert len(tags(redis_url, STARTS)) == len(tags(redis_url, ENDS)) == before
    assert thaw(federation, app=celery_setup.app)["state"] == "thawed"
    wait_until(lambda: len(tags(redis_url, ENDS)) >= 320)
    assert Counter(tags(redis_url, STARTS)) == dict.fromkeys([*range(20), *range(100, 400)], 1)


def test_node_killed_and_started_in_a_freeze_starts_frozen(
    federation: Federation, celery_setup: CeleryTestSetup, redis_url: str
) -> None:
    one, _two = celery_setup.worker_cluster
    hold(federation, 60, "a test", celery_setup.app)
    one.kill()
    assert one.container.status != "running"
    publish(redis_url, 20)
    one.restart()
    assert one.ready()
    wait_until(lambda: len([entry for entry in status(federation)["workers"] if entry["state"] == "frozen"]) >= 2)
    time.sleep(1)
    assert tags(redis_url, STARTS) == []
    thaw(federation, app=celery_setup.app)
    wait_until(lambda: len(tags(redis_url, ENDS)) == 20)
    wait_until(lambda: states(federation) == {"one@local": "thawed", "two@local": "thawed"})


def test_broker_restarted_in_a_freeze_loses_neither_freeze_nor_message(
    federation: Federation, celery_setup: CeleryTestSetup, redis_url: str
) -> None:
    hold(federation, 60, "a test", celery_setup.app)
    publish(redis_url, 20)
    celery_setup.broker.restart()
    assert celery_setup.broker.ready()
    wait_for_workers(federation, 2)
    assert status(federation)["state"] == "frozen"
    publish(redis_url, 20, first=20)
    time.sleep(1)
    assert tags(redis_url, STARTS) == []
    thaw(federation, app=celery_setup.app)
    wait_until(lambda: len(tags(redis_url, ENDS)) >= 40)
    assert Counter(tags(redis_url, STARTS)) == dict.fromkeys(range(40), 1)
