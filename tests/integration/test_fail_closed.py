"""A restore fails closed: whatever befalls a worker or Redis during it, no task runs on a mixed or foreign pair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis

from lych_checkpoint import coordinator, gate, journal, restore
from lych_checkpoint.errors import Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.records import canonical
from ops.servers.celery import CeleryProcess
from ops.servers.redis import RedisNode
from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.restoring import phase, restoring, slow_restore, standing
from tests.fixtures.workers import Lych, Workers

Opened = Callable[..., Federation]
_COUNT = 6
#: A supervisor: starts a worker again that ended with 75.
_SUPERVISOR = ("sh", "-c", 'until "$@"; do test $? = 75 || exit; sleep 0.5; done', "supervisor")


@pytest.fixture
def changed(opened: Opened, federation_root: Path, database: str) -> tuple[Federation, str]:
    """A checkpoint of the first version, with the second one live; the core's first commit."""
    federation = opened()
    first = git(federation_root / "core", "rev-parse", "HEAD")
    with psycopg.connect(database) as connection:
        connection.execute("create table version as select 1 as number")
    coordinator.create(federation, coordinator.Request())
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    with psycopg.connect(database) as connection:
        connection.execute("update version set number = 2")
    gate.check(federation)
    return federation, first


def check_new_pair(
    workers: Workers, old: CeleryProcess, root: Path, first: str, database: str, redis_url: str, tag: int,
) -> None:
    """Check that all tasks, those of before too, ran on the pair that came back, and none in the old worker."""
    publish(redis_url, _COUNT, first=tag)
    fresh = workers.start("fresh", pool="solo", environment={"LYCH_QUEUE_POLICY": "keep"})
    wait_until(lambda: len(workers.ends()) == 2 * _COUNT)
    assert {one["pid"] for one in workers.starts()} == {fresh.pid}
    assert fresh.pid != old.pid
    assert git(root / "core", "rev-parse", "HEAD") == first
    with psycopg.connect(database) as connection:
        assert connection.execute("select number from version").fetchone() == (1,)


def test_redis_wiped_in_the_middle_of_a_switch(
    changed: tuple[Federation, str], workers: Workers, federation_root: Path, database: str, redis_url: str,
) -> None:
    federation, first = changed
    worker = workers.start("old", pool="solo")
    wait_for_workers(federation, 1)
    vault = federation.vault.root
    with restoring(workers.environment, vault) as child:
        wait_until(lambda: phase(vault) == "switching")
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        publish(redis_url, _COUNT)  # whoever thaws by absence starts them
        assert child.wait(60) in (0, 6)
        assert worker.wait_exit() == 75
    assert workers.starts() == []
    if phase(vault):
        assert subprocess.run([sys.executable, "-m", "lych_checkpoint", "recover"], check=False,
                              env={**os.environ, **workers.environment}).returncode == 0
    check_new_pair(workers, worker, federation_root, first, database, redis_url, _COUNT)


def test_worker_stopped_through_a_whole_restore(
    changed: tuple[Federation, str], workers: Workers, federation_root: Path, database: str, redis_url: str,
) -> None:
    federation, first = changed
    worker = workers.start("old", pool="solo")
    wait_for_workers(federation, 1)
    vault = federation.vault.root
    with restoring(workers.environment, vault) as child:
        wait_until(lambda: phase(vault) == "closing")
        worker.send(signal.SIGSTOP)
        try:
            assert child.wait(60) == 0
            publish(redis_url, _COUNT)
        finally:
            worker.send(signal.SIGCONT)
        assert worker.wait_exit() == 75
    assert workers.starts() == []
    check_new_pair(workers, worker, federation_root, first, database, redis_url, _COUNT)


def test_worker_whose_restore_was_killed_stays_closed_until_it_leaves(
    changed: tuple[Federation, str], workers: Workers, redis_url: str,
) -> None:
    federation, _ = changed
    worker = workers.start("old", pool="solo")
    wait_for_workers(federation, 1)
    vault = federation.vault.root
    with restoring({**workers.environment, "LYCH_LEASE_S": "2"}, vault) as child:
        wait_until(lambda: phase(vault) == "closing")
        child.kill()
        publish(redis_url, _COUNT)
        assert worker.wait_exit() == 75
    assert workers.starts() == []
    assert workers.start("next", pool="solo", wait=False).wait_exit() == 75  # the restore is still open
    assert workers.starts() == []


def test_code_is_deployed_twice_while_a_restore_stages(
    changed: tuple[Federation, str], workers: Workers, federation_root: Path, database: str, redis_url: str,
    tmp_path: Path,
) -> None:
    federation, first = changed
    old, go = [workers.start("old", pool="solo")], tmp_path / "go"
    programs = slow_restore(Path(workers.environment["LYCH_PG_BIN"]), tmp_path / "programs", go)
    with restoring({**workers.environment, "LYCH_PG_BIN": str(programs)}, federation.vault.root) as child:
        wait_until(Path(f"{go}.waits").exists)
        # Each imprints a generation: the first is the one that the restore began with.
        commit(federation_root / "core", {"core/__init__.py": "VERSION = 3\n"})
        gate.check(federation)
        commit(federation_root / "core", {"core/__init__.py": "VERSION = 4\n"})
        old.append(workers.start("newer", pool="solo"))
        go.touch()
        assert child.wait(60) == 0
    publish(redis_url, _COUNT)
    assert [worker.wait_exit() for worker in old] == [75, 75]
    assert workers.starts() == []
    check_new_pair(workers, old[0], federation_root, first, database, redis_url, _COUNT)
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 5\n"})
    assert gate.check(federation).verdict == "ahead"  # not rewound


def test_redis_killed_in_the_middle_of_a_switch(
    changed: tuple[Federation, str], workers: Workers, federation_root: Path, database: str, redis_node: RedisNode,
    lych: Lych, tmp_path: Path,
) -> None:
    federation, first = changed
    worker = workers.start("old", pool="solo")
    wait_for_workers(federation, 1)
    with standing("switching", workers.environment, federation, tmp_path) as (child, go_on):
        redis_node.kill()
        assert worker.wait_exit() == 75
        go_on()
        assert child.wait(60) != 0
    redis_node.start()
    assert lych("gate").code in (0, 75)
    assert lych("recover").code == 0
    assert phase(federation.vault.root) == ""
    publish(redis_node.url, _COUNT)
    assert workers.starts() == []
    check_new_pair(workers, worker, federation_root, first, database, redis_node.url, _COUNT)


@pytest.mark.parametrize(("at", "pool", "version"), [
    ("closing", "threads", 2), ("switching", "prefork", 1), ("done", "gevent", 1)])
def test_no_task_runs_on_a_mixed_pair_when_a_restore_is_killed(
    changed: tuple[Federation, str], workers: Workers, redis_url: str, lych: Lych, tmp_path: Path,
    at: str, pool: str, version: int,
) -> None:
    federation, _ = changed

    def pairs() -> list[list[int]]:
        with redis.Redis.from_url(redis_url) as client:
            return [json.loads(one) for one in client.lrange("pairs", 0, -1)]

    workers.start("kept", pool=pool, app="tests.fixtures.apps.paired", within=_SUPERVISOR,
                  environment={"LYCH_QUEUE_POLICY": "keep"})
    publish(redis_url, _COUNT)
    wait_until(lambda: len(pairs()) == _COUNT)
    assert pairs() == [[2, 2]] * _COUNT
    with standing(at, workers.environment, federation, tmp_path) as (child, _):
        publish(redis_url, _COUNT)
        child.kill()
        child.wait()
    assert phase(federation.vault.root) == at
    publish(redis_url, _COUNT)
    assert lych("recover").code == 0
    wait_until(lambda: len(pairs()) == 3 * _COUNT, within_s=60)
    assert pairs()[_COUNT:] == [[version, version]] * 2 * _COUNT


def test_an_interrupted_restore_is_undone_and_says_so(
    changed: tuple[Federation, str], lych_environment: dict[str, str], tmp_path: Path,
) -> None:
    federation, _ = changed
    with standing("closing", lych_environment, federation, tmp_path) as (child, go_on):
        child.send_signal(signal.SIGINT)
        wait_until(lambda: phase(federation.vault.root) != "closing" or child.poll() is not None)
        go_on()
        assert child.wait(60) == 130
    (record,) = federation.vault.root.glob("notes/restore-*.json")
    assert json.loads(record.read_bytes())["outcome"] == "undone: KeyboardInterrupt"
    assert restore.recover(federation) == {"recovered": None}
    assert gate.check(federation).verdict == "aligned"


def test_recover_leaves_the_restore_of_another_host_alone(changed: tuple[Federation, str]) -> None:
    federation, _ = changed
    vault = federation.vault
    journal.begin(vault, checkpoint=vault.ids()[-1], ticket="t-1", generation=9, epoch=0)
    journal.path(vault).write_bytes(canonical({**json.loads(journal.path(vault).read_bytes()), "host": "elsewhere"}))
    with pytest.raises(Refused, match="disk of elsewhere") as caught:
        restore.recover(federation)
    assert caught.value.code == "other-host"
    (federation.settings.root / ".lych-stage" / "t-1").mkdir(parents=True)  # it is this one, under another name
    assert restore.recover(federation)["recovered"] == "old"
    record = json.loads((vault.root / "notes" / "restore-t-1.json").read_bytes())
    assert (record["recovered"], record["phase"]) == (True, "undone")
    assert record["outcome"] == "undone: interrupted before anything was displaced"


def test_worker_that_imported_the_old_code_just_before_a_restore(
    changed: tuple[Federation, str], workers: Workers, federation_root: Path, database: str, redis_url: str,
    tmp_path: Path,
) -> None:
    federation, first = changed
    go = tmp_path / "go"
    late = workers.start("late", pool="solo", wait=False, environment={"LYCH_TEST_IMPORT_UNTIL": str(go)})
    wait_until(go.with_suffix(".waits").exists)
    with restoring(workers.environment, federation.vault.root) as child:
        assert child.wait(60) == 0
    publish(redis_url, _COUNT)
    go.touch()
    assert late.wait_exit() == 75
    assert "changed since" in late.text
    assert workers.starts() == []
    check_new_pair(workers, late, federation_root, first, database, redis_url, _COUNT)
