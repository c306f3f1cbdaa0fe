"""A drain that waits for as long as tasks run, instead of giving up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery

from lych_checkpoint import coordinator, status
from lych_checkpoint.errors import FreezeError
from lych_checkpoint.federation import Federation
from tests.fixtures.client import wait_until
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.workers import Workers

Open = Callable[..., Federation]


def test_drain_that_waits_outlasts_its_time_and_says_for_what(
    opened: Open, workers: Workers, client: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    federation = opened(LYCH_DRAIN="wait", LYCH_DRAIN_TIMEOUT_S="1", LYCH_LEASE_S="2")
    workers.start("busy")
    wait_for_workers(federation, 1)
    task = client.send_task("nap", args=[7], kwargs={"tag": "long"})
    wait_until(workers.starts)
    with caplog.at_level("INFO", "lych_checkpoint.freeze"):
        document = coordinator.create(federation, coordinator.Request())
    assert workers.ends()[0]["at"] <= document["frozen_at"]
    assert any(f"nap [{task.id}] has run for" in line and "busy@local" in line for line in caplog.messages)


def test_drain_that_waits_ends_when_its_lease_is_lost(opened: Open, workers: Workers, client: Celery) -> None:
    federation = opened(LYCH_DRAIN="wait")
    workers.start("busy")
    wait_for_workers(federation, 1)
    client.send_task("nap", args=[12], kwargs={"tag": "long"})
    wait_until(workers.starts)
    with ThreadPoolExecutor() as pool:
        creating = pool.submit(coordinator.create, opened(LYCH_DRAIN="wait"), coordinator.Request())
        wait_until(lambda: status.status(federation)["state"] == "draining")
        assert status.thaw(federation, force=True)["state"] == "thawed"
        with pytest.raises(FreezeError, match="lease was lost"):
            creating.result(20)
    assert list(federation.vault.root.glob("checkpoints/*/seal")) == []
