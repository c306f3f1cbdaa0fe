"""Several who ask at once, and doors that find a server away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from celery import Celery

from tests.fixtures.client import wait_until
from tests.fixtures.workers import RECORDING, Lych, Workers


def test_second_create_waits_and_no_wait_answers_at_once(lych: Lych, workers: Workers, client: Celery) -> None:
    assert lych("init").code == 0
    workers.start("busy")
    client.send_task("nap", args=[12], kwargs={"tag": "long"})
    wait_until(lambda: workers.starts())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lych, "create", "--here", "--json")
        wait_until(lambda: lych("status", "--json").json["state"] == "draining")
        refused = lych("create", "--here", "--no-wait", "--json")
        assert refused.code == 5
        assert refused.json["error"]["code"] == "lock-held"
        second = pool.submit(lych, "create", "--here", "--json")
        answers = [first.result(), second.result()]
    assert [answer.code for answer in answers] == [0, 0]
    # The second was asked for after the first one's freeze began, so that one could not serve it.
    assert answers[0].json["id"] != answers[1].json["id"]


def test_requests_made_before_a_freeze_share_its_checkpoint(lych: Lych, workers: Workers, client: Celery) -> None:
    assert lych("init").code == 0
    workers.start("one", concurrency=4)
    results = [client.send_task("checkpoint.create", kwargs={"reason": f"burst {n}"}) for n in range(4)]
    documents = [result.get(timeout=40) for result in results]
    sealed = lych("list", "--json").json["checkpoints"]
    assert {document["id"] for document in documents} == {one["id"] for one in sealed}
    assert len(sealed) < 4
    assert max(document["coalesced"] for document in documents) >= 1


def test_broker_away_is_said(lych: Lych, lych_environment: dict[str, str], workers: Workers, tmp_path: Path) -> None:
    assert lych("init").code == 0
    workers.start("one")
    began_s = time.monotonic()
    for here in (["--here"], []):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", RECORDING, "checkpoint", "create", "--json", *here],
            check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60,
            env={**os.environ, **lych_environment, "LYCH_TEST_BROKER_URL": "redis://127.0.0.1:1/0"},
        )
        assert done.returncode == 75, done.stdout + done.stderr
        assert "broker-away" in done.stdout
        assert "Traceback" not in done.stderr
    assert time.monotonic() - began_s < 30
    assert lych("status", "--json").json["state"] == "thawed"


def test_doctor_finds_a_healthy_federation_and_names_what_is_away(lych: Lych) -> None:
    assert lych("init").code == 0
    healthy = lych("doctor", "--json")
    assert healthy.code == 0, healthy.out
    assert healthy.json["healthy"] is True
    assert {one["check"] for one in healthy.json["checks"]} >= {"vault", "redis", "database", "drivers", "body",
                                                                "workers"}
    away = lych("doctor", "--json", LYCH_REDIS_URL="redis://127.0.0.1:1/0")
    assert away.code == 75
    assert [one["check"] for one in away.json["checks"] if one["state"] == "fault"] == ["redis", "workers"]
    unset = lych("doctor", "--json", LYCH_FEDERATION="")
    assert unset.code == 2
    assert unset.json["error"]["where"] == "LYCH_FEDERATION"


def test_worker_without_the_plugin_is_named_and_refused(
    lych: Lych, workers: Workers, lych_environment: dict[str, str], tmp_path: Path
) -> None:
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    workers.start("one")
    workers.start("bare", app="tests.fixtures.apps.bare")
    for verb in (["create"], ["restore", "latest", "--yes"]):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", RECORDING, "checkpoint", *verb, "--json"], check=False,
            capture_output=True, text=True, cwd=tmp_path, timeout=60, env={**os.environ, **lych_environment},
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert json.loads(done.stdout)["error"]["code"] == "stranger"
        assert "bare@" in done.stdout
    assert len(lych("list", "--json").json["checkpoints"]) == 1  # nothing was displaced
