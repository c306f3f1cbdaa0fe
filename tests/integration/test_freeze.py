"""The freeze on real workers: held, drained, thawed, and never longer than its lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from celery import Celery

from tests.fixtures.client import publish, wait_until
from tests.fixtures.workers import Lych, Workers

_HOLD = """
import sys, time
from lych_checkpoint import freeze
from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
federation = Federation(Settings.load())
with freeze.thawing(federation.store(), federation.terms("checkpoint", "a test"), lambda *_: None) as (frozen, thaw):
    frozen.wait_for_acks()
    frozen.drain()
    print("window", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_tasks_published_in_a_freeze_start_after_it_and_once(
    pool: str, lych: Lych, workers: Workers, redis_url: str
) -> None:
    assert lych("init").code == 0
    workers.start("one", pool=pool)
    workers.start("two", pool=pool)
    publish(redis_url, 40)
    frozen = lych("freeze", "--for", "60s", "--reason", "a test", "--json")
    assert frozen.code == 0, frozen.err
    before = len(workers.starts())
    assert len(workers.ends()) == before
    publish(redis_url, 2000, first=1000)
    time.sleep(2)
    assert len(workers.starts()) == before
    thawed_at = time.time()
    assert lych("thaw", "--json").json["state"] == "thawed"
    wait_until(lambda: len(workers.ends()) >= 2040, 60)
    time.sleep(0.5)
    counts = Counter(record["tag"] for record in workers.starts())
    assert counts == dict.fromkeys([*range(40), *range(1000, 3000)], 1)
    late = [record["at"] for record in workers.starts() if record["tag"] >= 1000]
    assert min(late) >= thawed_at


def test_killed_coordinator_leaves_no_freeze_no_checkpoint_and_no_obstacle(
    lych: Lych, workers: Workers, redis_url: str, lych_environment: dict[str, str], tmp_path: Path
) -> None:
    assert lych("init").code == 0
    one, _two = workers.start("one"), workers.start("two")
    environment = {**os.environ, **lych_environment, "LYCH_LEASE_S": "3"}
    holder = subprocess.Popen([sys.executable, "-c", _HOLD], env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "window"
    publish(redis_url, 20)
    time.sleep(1.5)
    assert not workers.starts()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    killed_at = time.time()
    os.kill(one.pid, signal.SIGKILL)  # a worker dies as well, and never unregisters
    wait_until(lambda: len(workers.ends()) >= 12, 10)
    first = min(record["at"] for record in workers.starts())
    assert first - killed_at <= 3 + 1  # the lease was renewed to 3 s at the latest at the kill
    assert lych("list", "--json").json["checkpoints"] == []
    done = lych("create", "--json", timeout_s=60)
    assert done.code == 0, done.err
    assert [name.partition("@")[0] for name in done.json["workers"]] == ["two"]


def test_coordinator_killed_while_it_captures_leaves_nothing(
    lych: Lych, workers: Workers, lych_environment: dict[str, str], database: str, redis_url: str, tmp_path: Path
) -> None:
    assert lych("init").code == 0
    workers.start("one")
    with psycopg.connect(database) as blocker:
        blocker.execute("CREATE TABLE crypt (id int)")
        blocker.commit()
        blocker.execute("LOCK TABLE crypt IN ACCESS EXCLUSIVE MODE")  # pg_dump waits for it inside the window
        environment = {**os.environ, **lych_environment, "LYCH_LEASE_S": "3", "LYCH_WRITERS": "note",
                       "LYCH_DRIVER": "dump"}
        creating = subprocess.Popen(
            [sys.executable, "-m", "lych_checkpoint", "create", "--here"], env=environment, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: lych("status", "--json").json["state"] == "frozen", 20)
        publish(redis_url, 5)
        creating.kill()
        creating.wait()
        wait_until(lambda: len(workers.ends()) == 5, 6)
    assert lych("list", "--json").json["checkpoints"] == []
    assert lych("create", "--json", LYCH_DRIVER="dump").code == 0


def test_worker_that_does_not_ack_is_named_and_everyone_is_thawed(
    lych: Lych, workers: Workers, redis_url: str
) -> None:
    assert lych("init").code == 0
    stopped = workers.start("mute")
    workers.start("well")
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        answer = lych("create", "--here", "--json", LYCH_ACK_TIMEOUT_S="2")
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert answer.code == 4
    assert "mute@" in answer.json["error"]["what"]
    publish(redis_url, 10)
    wait_until(lambda: len(workers.ends()) == 10, 10)


def test_long_task_stops_the_drain_and_is_named(lych: Lych, workers: Workers, client: Celery) -> None:
    assert lych("init").code == 0
    workers.start("busy")
    task = client.send_task("nap", args=[10], kwargs={"tag": "long"})
    wait_until(lambda: workers.starts())
    answer = lych("create", "--here", "--json", LYCH_DRAIN_TIMEOUT_S="1")
    assert answer.code == 4
    assert task.id in answer.json["error"]["what"]
    assert "nap" in answer.json["error"]["what"]
    assert "busy@" in answer.json["error"]["what"]
    assert lych("status", "--json").json["state"] == "thawed"


def test_exempt_task_is_not_drained(lych: Lych, workers: Workers, client: Celery) -> None:
    assert lych("init").code == 0
    workers.start("busy")
    client.send_task("exempt_nap", args=[12], kwargs={"tag": "long"})
    wait_until(lambda: workers.starts())
    assert lych("create", "--here", "--json", LYCH_DRAIN_TIMEOUT_S="2").code == 0
    assert not workers.ends()


def test_worker_that_boots_in_a_freeze_boots_frozen(lych: Lych, workers: Workers, redis_url: str) -> None:
    assert lych("init").code == 0
    assert lych("freeze", "--for", "12s", "--reason", "a test").code == 0
    publish(redis_url, 20)
    workers.start("late")
    ends_s = lych("status", "--json").json["freeze"]["since"] + 12
    time.sleep(1)
    assert not workers.starts()
    wait_until(lambda: len(workers.ends()) == 20, 20)
    assert min(record["at"] for record in workers.starts()) >= ends_s - 0.05
    assert min(record["at"] for record in workers.starts()) <= ends_s + 1


def test_status_tells_who_froze_why_and_for_how_long(lych: Lych, workers: Workers) -> None:
    assert lych("init").code == 0
    workers.start("one")
    assert lych("freeze", "--for", "30s", "--reason", "moving house").code == 0
    status = lych("status", "--json").json
    assert status["state"] == "frozen"
    assert status["freeze"]["mode"] == "maintenance"
    assert status["freeze"]["reason"] == "moving house"
    assert 20 < status["freeze"]["expires_in_s"] <= 30
    assert [(worker["name"].partition("@")[0], worker["pool"], worker["in_flight"]) for worker in status["workers"]] \
        == [("one", "prefork", 0)]
    inside = lych("create", "--json")
    assert inside.code == 0, inside.err
    assert lych("status", "--json").json["state"] == "frozen"
    assert lych("thaw").code == 0
    assert lych("status", "--json").json == {"schema": 1, "state": "thawed", "freeze": None, "restore": None,
                                             "quarantined": 0, "workers": lych("status", "--json").json["workers"]}


def test_broker_without_fanout_is_refused(lych: Lych, lych_environment: dict[str, str], tmp_path: Path) -> None:
    assert lych("init").code == 0
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.fixtures.apps.recording", "checkpoint", "create", "--here",
         "--json"], check=False, capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, **lych_environment, "LYCH_TEST_BROKER_URL": f"sqla+sqlite:///{tmp_path}/broker.db"},
    )
    assert done.returncode == 1, done.stderr
    assert "no-fanout" in done.stdout
