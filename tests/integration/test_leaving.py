"""Workers that must leave after a restore, and do."""

from __future__ import annotations

from lych_checkpoint.lease import marks
from lych_checkpoint.lease.connection import Store
from tests.fixtures.workers import Lych, Workers


def test_worker_leaves_even_if_its_shutdown_hangs(lych: Lych, workers: Workers, redis_url: str) -> None:
    uuid = lych("init", "--json").json["uuid"]
    worker = workers.start("stuck", app="tests.fixtures.apps.hanging")
    marks.mark_restored(Store(redis_url, uuid), 99)
    assert worker.wait_exit(timeout_s=45) == 75
    assert "Traceback" not in worker.text
