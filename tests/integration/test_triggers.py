"""The three uses: `celery call`, beat, and before an evolution task."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celery import Celery

from tests.fixtures.client import wait_until
from tests.fixtures.federation import commit
from tests.fixtures.workers import RECORDING, Lych, Workers


def celery(environment: dict[str, str], cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `celery -A app …`."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", RECORDING, *argv], check=False, capture_output=True, text=True,
        cwd=cwd, env={**os.environ, **environment}, timeout=60,
    )


def sealed(lych: Lych) -> list[dict[str, object]]:
    """Return the sealed checkpoints."""
    return list(lych("list", "--json").json["checkpoints"])


def test_celery_call_seals_a_checkpoint(
    lych: Lych, workers: Workers, lych_environment: dict[str, str], tmp_path: Path, client: Celery
) -> None:
    assert lych("init").code == 0
    workers.start("one")
    called = celery(lych_environment, tmp_path, "call", "checkpoint.create")
    assert called.returncode == 0, called.stderr
    wait_until(lambda: len(sealed(lych)) == 1)
    result = client.AsyncResult(called.stdout.strip()).get(timeout=10)
    assert result["state"] == "sealed"
    assert result["id"] == sealed(lych)[0]["id"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "eventlet"])
def test_coordinator_on_every_pool_seals_with_another_worker_beside_it(
    pool: str, lych: Lych, workers: Workers, client: Celery
) -> None:
    assert lych("init").code == 0
    workers.start("beside", wait=False)
    workers.start("own", pool=pool, options=("-Q", "checkpoints"),
                  environment={"LYCH_QUEUE": "checkpoints"})
    wait_until(lambda: len(lych("status", "--json").json["workers"]) == 2)
    result = client.send_task("checkpoint.create", queue="checkpoints").get(timeout=40)
    assert result["state"] == "sealed"
    assert result["workers"] == ["beside@local", "own@local"]
    assert [one["id"] for one in sealed(lych)] == [result["id"]]


def test_celery_command_creates_and_follows(
    lych: Lych, workers: Workers, lych_environment: dict[str, str], tmp_path: Path
) -> None:
    assert lych("init").code == 0
    workers.start("one", pool="solo")
    done = celery(lych_environment, tmp_path, "checkpoint", "create", "--label", "before-moving", "--json")
    assert done.returncode == 0, done.stderr
    assert '"label": "before-moving"' in done.stdout
    assert celery(lych_environment, tmp_path, "checkpoint", "verify", "before-moving").returncode == 0
    restored = celery(lych_environment, tmp_path, "checkpoint", "restore", "before-moving", "--yes", "--json")
    assert restored.returncode == 0, restored.stderr


def test_beat_seals_checkpoints(lych: Lych, workers: Workers) -> None:
    assert lych("init").code == 0
    workers.start("one")
    workers.beat(environment={"LYCH_SCHEDULE": "2"})
    wait_until(lambda: len(sealed(lych)) >= 2)
    assert {one["reason"] for one in sealed(lych)} == {"schedule"}


def test_sealed_checkpoint_precedes_every_evolution(
    lych: Lych, workers: Workers, federation_root: Path, client: Celery
) -> None:
    assert lych("init").code == 0
    workers.start("one", concurrency=2)
    asked_at = time.time()
    results = [client.send_task("evolve", kwargs={"tag": tag}) for tag in range(4)]
    for result in results:
        result.get(timeout=30)
    starts = {record["tag"]: record["at"] for record in workers.starts()}
    checkpoints = sealed(lych)
    assert 1 <= len(checkpoints) < 4
    for tag in range(4):
        assert any(asked_at <= one["frozen_at"] and one["thawed_at"] <= starts[tag]  # type: ignore[operator]
                   for one in checkpoints)


def test_failed_checkpoint_fails_the_evolution_before_its_body(
    lych: Lych, workers: Workers, federation_root: Path, client: Celery
) -> None:
    assert lych("init").code == 0
    workers.start("one")
    (federation_root / "core" / "loose.txt").write_text("not committed\n")
    result = client.send_task("evolve", kwargs={"tag": "never"})
    error = result.get(timeout=30, propagate=False)
    assert "core" in str(error)
    assert "loose.txt" in str(error)
    assert not workers.starts()
    commit(federation_root / "core", {"loose.txt": "committed\n"})
    client.send_task("evolve", kwargs={"tag": "now"}).get(timeout=30)
