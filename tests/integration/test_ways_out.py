"""Ways out for long tasks, and what precedes an EvolutionTask's body, on real workers."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group

from lych_checkpoint import freeze
from lych_checkpoint.errors import FreezeError
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import FreezeFacts, Manifest
from lych_checkpoint.status import status
from tests.fixtures.apps import BODIES, PAUSES
from tests.fixtures.client import wait_until
from tests.fixtures.federation import git
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.workers import Workers

WAYS_OUT = "tests.fixtures.apps.ways_out"
Opened = Callable[..., Federation]


def notes(url: str, key: str) -> list[dict[str, Any]]:
    """What tasks noted under ``key``."""
    with redis.Redis.from_url(url) as found:
        return [json.loads(line) for line in found.lrange(key, 0, -1)]


def freeze_once(federation: Federation, hold_s: float, within: Callable[[], None] = lambda: None) -> FreezeFacts:
    """Freeze as a checkpoint would, hold, confirm, thaw."""
    terms = federation.terms(freeze.CHECKPOINT, "a test")
    with freeze.thawing(federation.store(), terms, lambda _act, _epoch: None) as (frozen, thaw):
        frozen.wait_for_acks()
        frozen.drain()
        within()
        time.sleep(hold_s)
        frozen.confirm()
        return thaw()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_task_at_a_safepoint_counts_as_drained_and_wakes_at_once(
    pool: str, opened: Opened, workers: Workers, client: Celery, redis_url: str
) -> None:
    federation = opened(LYCH_DRAIN_TIMEOUT_S="5")
    walker = workers.start("walker", pool=pool, app=WAYS_OUT)
    wait_for_workers(federation, 1)
    client.send_task("walk", args=["one", 60])
    parked: list[int] = []
    wait_until(lambda: status(federation)["workers"][0]["in_flight"] == 1)
    windows = []
    for _ in range(5):
        windows.append(freeze_once(federation, 0.3,
                                   lambda: parked.append(status(federation)["workers"][0]["parked"])))
        time.sleep(0.3)  # a freeze that begins sooner finds the task parked still, and keeps it
    assert parked == [1] * 5
    wait_until(lambda: len(notes(redis_url, PAUSES)) == 5)
    late_s = []
    for window, pause in zip(windows, notes(redis_url, PAUSES), strict=True):
        assert pause["from"] <= window.frozen_at
        assert pause["to"] >= window.thawed_at
        late_s.append(pause["to"] - window.thawed_at)
    assert statistics.median(late_s) <= 0.05
    assert status(federation)["workers"][0]["parked"] == 0
    assert status(federation)["workers"][0]["in_flight"] == 1
    walker.send(signal.SIGKILL)


def test_drain_waits_as_long_as_it_may_then_names_task_id_worker_and_age(
    opened: Opened, workers: Workers, client: Celery
) -> None:
    busy = workers.start("busy", app=WAYS_OUT)
    federation = opened(LYCH_DRAIN_TIMEOUT_S="1")
    wait_for_workers(federation, 1)
    task = client.send_task("nap", args=[3.5], kwargs={"tag": "long"})
    exempt = client.send_task("exempt_nap", args=[30], kwargs={"tag": "exempt"})
    wait_until(lambda: len(workers.starts()) == 2)
    with pytest.raises(FreezeError) as caught:
        freeze_once(federation, 0)
    assert caught.value.code == "no-drain"
    assert caught.value.what.startswith(f"nap [{task.id}] has run for 1.")
    assert "s on busy@local and did not end within 1 s" in caught.value.what
    assert exempt.id not in caught.value.what
    for way in ("LYCH_DRAIN_TIMEOUT_S", "checkpoint_exempt", "safepoint()"):
        assert way in caught.value.mend
    wait_until(lambda: status(federation)["workers"][0]["state"] == "thawed", 2)
    facts = freeze_once(opened(LYCH_DRAIN_TIMEOUT_S="10"), 0)  # the same task, a more patient drain
    ended = [record["at"] for record in workers.ends() if record["tag"] == "long"]
    assert ended
    assert ended[0] <= facts.frozen_at
    assert facts.exempt == ("exempt_nap",)
    busy.send(signal.SIGKILL)


def began_at(federation: Federation, checkpoint: str) -> float:
    """When the freeze of a sealed checkpoint began."""
    held = manifest(federation, checkpoint).freeze
    return held.frozen_at - (held.window.ack_ms + held.window.drain_ms) / 1000


def manifest(federation: Federation, checkpoint: str) -> Manifest:
    return federation.vault.manifest(checkpoint)


def check_bodies(federation: Federation, bodies: list[dict[str, Any]]) -> None:
    """Check that a sealed checkpoint, begun after the task was taken up, precedes each body."""
    for body in bodies:
        assert body["sealed"], body
        assert began_at(federation, body["checkpoint"]) >= body["taken_up"] - 0.005, body
        assert manifest(federation, body["checkpoint"]).freeze.thawed_at <= body["at"], body


def test_sealed_checkpoint_precedes_every_body_however_it_is_called(
    opened: Opened, workers: Workers, client: Celery, redis_url: str, tmp_path: Path
) -> None:
    federation = opened()
    workers.start("evolver", concurrency=3, app=WAYS_OUT)
    wait_for_workers(federation, 1)

    def mutate(tag: str) -> Any:
        return client.signature("mutate", args=[tag], immutable=True)

    results = [
        chain(client.signature("record", args=["first"]), mutate("chain"), app=client).apply_async(),
        group(mutate("group-1"), mutate("group-2"), app=client).apply_async(),
        chord([mutate("chord-1"), mutate("chord-2")], client.signature("gather"), app=client).apply_async(),
    ]
    results += [
        client.send_task("mutate_twice", args=["retry"]),
        client.send_task("mutate", args=["eta"], countdown=1.5),
    ]
    called = subprocess.run(
        [sys.executable, "-m", "celery", "-A", WAYS_OUT, "call", "mutate", "--args", '["call"]'],
        check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **workers.environment},
    )
    assert called.returncode == 0, called.stderr
    beat = workers.beat(app=WAYS_OUT, environment={"LYCH_TEST_BEAT": "1"})
    wait_until(lambda: "beat" in {body["tag"] for body in notes(redis_url, BODIES)}, 30)
    beat.ask_to_stop()
    for result in results:
        result.get(timeout=30)
    wait_until(lambda: "call" in {body["tag"] for body in notes(redis_url, BODIES)}, 30)
    bodies = notes(redis_url, BODIES)
    counts = Counter(body["tag"] for body in bodies)
    del counts["beat"]
    assert counts == dict.fromkeys(
        ["chain", "group-1", "group-2", "chord-1", "chord-2", "retry-0", "retry-1", "eta", "call"], 1)
    check_bodies(federation, bodies)
    first, second = (next(body for body in bodies if body["tag"] == f"retry-{run}") for run in (0, 1))
    assert first["checkpoint"] != second["checkpoint"]  # the second run was taken up after the first one's freeze


def test_burst_shares_checkpoints(opened: Opened, workers: Workers, client: Celery, redis_url: str) -> None:
    federation = opened()
    workers.start("evolver", pool="threads", concurrency=8, app=WAYS_OUT)
    wait_for_workers(federation, 1)
    sent = [client.send_task("mutate", args=[number]) for number in range(8)]
    assert [one.get(timeout=30) for one in sent] == list(range(8))
    bodies = notes(redis_url, BODIES)
    assert len(bodies) == 8
    check_bodies(federation, bodies)
    used = {body["checkpoint"] for body in bodies}
    assert len(used) <= 3
    assert len(list(federation.vault.root.glob("checkpoints/*/seal"))) == len(used)
    assert sum(manifest(federation, one).coalesced for one in used) > 0


def test_task_fails_before_its_body_when_its_checkpoint_does(
    opened: Opened, workers: Workers, client: Celery, redis_url: str, federation_root: Path
) -> None:
    federation = opened()
    workers.start("evolver", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    (federation_root / "core" / "README").write_text("dirty\n")
    with pytest.raises(Exception, match=r"dirty|uncommitted|changed"):
        client.send_task("mutate", args=["never"]).get(timeout=30)
    assert notes(redis_url, BODIES) == []
    assert not list(federation.vault.root.glob("checkpoints/*"))
    git(federation_root / "core", "checkout", "-q", "README")
    assert client.send_task("mutate", args=["after"]).get(timeout=30) == "after"
    check_bodies(federation, notes(redis_url, BODIES))
