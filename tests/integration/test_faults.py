"""A freeze while its parts are killed, stopped and emptied: it ends in time and seals nothing false.

The leases live in a Redis of their own here, so that messages and records survive what is done to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from lych_checkpoint import broadcast, coordinator, freeze
from lych_checkpoint.errors import Away, CheckpointError, FreezeError, LockHeld
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lease, lock, roster
from lych_checkpoint.manifest import FreezeFacts
from lych_checkpoint.settings import Settings
from lych_checkpoint.setup import init
from ops.chaos.brokers import REDIS
from ops.servers.celery import CeleryProcess
from ops.servers.postgres import PostgresNode
from ops.servers.redis import RedisNode
from tests.fixtures.apps import PAUSES
from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import make_repository
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.redis import SYSTEM
from tests.fixtures.workers import Workers

WAYS_OUT = "tests.fixtures.apps.ways_out"
LEASE_S = 2.0
Open = Callable[..., Federation]


@pytest.fixture
def leases(tmp_path: Path, redis_program: Path | None) -> Iterator[RedisNode]:
    """The Redis that the faults hit."""
    with RedisNode.start_new(tmp_path / "leases", persistence="none", program=redis_program) as node:
        yield node


@pytest.fixture
def lych_environment(lych_environment: dict[str, str], leases: RedisNode, redis_url: str) -> dict[str, str]:
    """The usual settings, short terms, and the leases apart from broker and records."""
    return {**lych_environment, "LYCH_REDIS_URL": leases.url, "LYCH_TEST_BROKER_URL": redis_url,
            "LYCH_TEST_RECORDS_URL": redis_url, "LYCH_LEASE_S": str(LEASE_S), "LYCH_DRAIN_TIMEOUT_S": "6",
            "LYCH_ACK_TIMEOUT_S": "3"}


def restart_empty(node: RedisNode) -> None:
    """Kill the server and start it with nothing in it."""
    node.kill()
    node.start()


@contextmanager
def stopped(pid: int | None, *, whole: bool = False) -> Iterator[None]:
    """Stop a process, or its whole group, for the body of the `with`."""
    assert pid is not None
    send = os.killpg if whole else os.kill
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            send(pid, signal.SIGCONT)


@contextmanager
def frozen_by(federation: Federation, ring: freeze.Ring = lambda _act, _epoch: None) -> Iterator[
    tuple[freeze.Freeze, Callable[[], FreezeFacts]]
]:
    """Freeze as a checkpoint would."""
    store = federation.store()
    gone.sweep(store, federation.settings.gone_after_s)
    gone.settle(store)
    with freeze.thawing(store, federation.terms(freeze.CHECKPOINT, "a test"), ring) as (frozen, thaw):
        yield frozen, thaw


def freeze_once(federation: Federation) -> FreezeFacts:
    """A freeze that nothing disturbs."""
    with frozen_by(federation) as (frozen, thaw):
        frozen.wait_for_acks()
        frozen.drain()
        frozen.confirm()
        return thaw()


def check_all_work(workers: Workers, redis_url: str, tag: int, within_s: float = 10) -> None:
    """Check that fresh tasks run to their end."""
    publish(redis_url, 8, first=tag)
    wait_until(lambda: {*range(tag, tag + 8)} <= {record["tag"] for record in workers.ends()}, within_s)


def first_start(workers: Workers, tag: int) -> float:
    """When the first task from ``tag`` on began."""
    return min((record["at"] for record in workers.starts() if isinstance(record["tag"], int)
                and record["tag"] >= tag), default=float("inf"))


def test_redis_restarted_empty_in_every_phase(
    opened: Open, workers: Workers, leases: RedisNode, redis_url: str, client: Celery
) -> None:
    federation = opened()
    workers.start("one", app=WAYS_OUT)
    workers.start("two", pool="solo", app=WAYS_OUT)
    for number, phase in enumerate(("freezing", "draining", "frozen", "thawing")):
        wait_for_workers(federation, 2)
        if phase == "draining":
            client.send_task("nap", args=[1.5], kwargs={"tag": "drained"})
            wait_until(lambda: "drained" in {record["tag"] for record in workers.starts()})

        def empty_in(now: str, phase: str = phase) -> None:
            if now == phase:
                restart_empty(leases)

        facts, broken = None, ""
        try:
            with frozen_by(federation, lambda act, _: empty_in("freezing" if act == "freeze" else act)) as (
                frozen, thaw):
                frozen.wait_for_acks()
                empty_in("draining")
                frozen.drain()
                empty_in("frozen")
                frozen.confirm()
                confirmed_at = time.time()
                empty_in("thawing")
                facts = thaw()
        except FreezeError as error:
            broken = error.code
        emptied_at = time.time()
        assert broken == ("" if phase == "thawing" else "freeze-broken"), phase
        if facts is not None:
            assert facts.thawed_at <= confirmed_at
        check_all_work(workers, redis_url, 1000 * number)
        assert first_start(workers, 1000 * number) <= emptied_at + LEASE_S + 1
        wait_for_workers(federation, 2)
        assert freeze_once(federation).workers == ("one@local", "two@local")


def test_stopped_redis_holds_nobody_past_the_lease(
    opened: Open, workers: Workers, leases: RedisNode, redis_url: str, client: Celery
) -> None:
    federation = opened()
    one = workers.start("one", app=WAYS_OUT)
    two = workers.start("two", pool="threads", app=WAYS_OUT)
    wait_for_workers(federation, 2)
    client.send_task("walk", args=["parks", 60])
    wait_until(lambda: sum(entry.in_flight for entry in roster.entries(federation.store()).values()) == 1)
    with pytest.raises(Away) as caught, frozen_by(federation) as (frozen, _thaw):
        frozen.wait_for_acks()
        frozen.drain()
        publish(redis_url, 8, first=10)
        standing = lease.read(federation.store())
        assert standing is not None
        with stopped(leases.pid):
            ends_at = time.time() + LEASE_S  # a renewal may have come in between
            wait_until(lambda: {*range(10, 18)} <= {record["tag"] for record in workers.ends()}, LEASE_S + 3)
            assert first_start(workers, 10) <= ends_at + 1
            with redis.Redis.from_url(redis_url) as records:
                wait_until(lambda: records.llen(PAUSES) == 1, 3)  # the parked task went on as well, and whole
                assert b"error" not in records.lindex(PAUSES, 0)
            frozen.confirm()
    assert caught.value.exit_code == 75
    wait_until(lambda: lease.read(federation.store()) is None, LEASE_S + 2)
    assert freeze_once(federation).workers == ("one@local", "two@local")
    check_all_work(workers, redis_url, 100)
    two.send(signal.SIGKILL)
    one.send(signal.SIGKILL)


@pytest.mark.parametrize("redis_program", [None, SYSTEM], indirect=True)
@pytest.mark.parametrize(("stop_s", "seals"), [(0.4, True), (LEASE_S + 0.7, False)])
def test_worker_stopped_in_the_window_and_continued(
    stop_s: float, seals: bool, opened: Open, workers: Workers, redis_url: str
) -> None:
    federation = opened()
    one = workers.start("one", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    confirmed = False
    with suppress(FreezeError), frozen_by(federation) as (frozen, thaw):
        frozen.wait_for_acks()
        frozen.drain()
        publish(redis_url, 8)
        with stopped(one.pid, whole=True):
            time.sleep(stop_s)
            frozen.confirm()
            confirmed = True
            facts = thaw()
            assert first_start(workers, 0) == float("inf")
    assert confirmed == seals
    wait_until(lambda: len(workers.ends()) == 8, 5)
    if confirmed:
        assert first_start(workers, 0) >= facts.thawed_at
    time.sleep(roster.LICENCE_S)
    freeze_once(federation)


def test_coordinator_stopped_past_its_lease_seals_nothing_and_holds_nobody(
    opened: Open, workers: Workers, redis_url: str, tmp_path: Path
) -> None:
    federation = opened()
    workers.start("one", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    environment = {**os.environ, **workers.environment, "LYCH_TEST_RECORDS": str(tmp_path),
                   "LYCH_TEST_BROKER_KIND": REDIS}
    holder = subprocess.Popen([sys.executable, "-m", "ops.chaos.coordinator", "3"], env=environment,
                              stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (lease.read(federation.store()) or gone_lease()).phase == "frozen")
        publish(redis_url, 8)
        with stopped(holder.pid):
            stopped_at = time.time()
            wait_until(lambda: len(workers.ends()) == 8, LEASE_S + 3)
            assert first_start(workers, 0) <= stopped_at + LEASE_S + 1
            freeze_once(federation)  # another one may go before
        assert holder.wait(10) == 4
        assert holder.stdout is not None
        assert "freeze-broken" in holder.stdout.read()
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    assert not (tmp_path / "windows").exists()
    check_all_work(workers, redis_url, 100)


def gone_lease() -> lease.LeaseFacts:
    """What stands for no lease."""
    return lease.LeaseFacts(token="", epoch=0, mode="", phase="thawed", reason="", coordinator={}, since_ms=0,
                            expires_in_ms=0)


def test_two_coordinators_take_turns_and_one_that_does_not_wait_is_told(opened: Open, workers: Workers) -> None:
    workers.start("one", app=WAYS_OUT)
    wait_for_workers(opened(), 1)
    answers: dict[str, Any] = {}

    def create(name: str, *, wait: bool) -> None:
        try:
            answers[name] = coordinator.create(opened(), coordinator.Request(label=name, wait=wait))
        except CheckpointError as error:
            answers[name] = error

    threads = [threading.Thread(target=create, args=(name,), kwargs={"wait": True}) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    # The lock outlasts the freeze, which is too short to be seen by polling.
    wait_until(lambda: lock.owner(opened().store()) == "create")
    create("hasty", wait=False)
    for thread in threads:
        thread.join(30)
    assert isinstance(answers["hasty"], LockHeld)
    windows = sorted((answers[name]["frozen_at"], answers[name]["thawed_at"]) for name in ("first", "second"))
    assert windows[0][1] <= windows[1][0]
    assert len(list(opened().vault.root.glob("checkpoints/*/seal"))) == 2


def test_dead_workers_keep_nobody_waiting_beyond_the_proof(
    opened: Open, workers: Workers, redis_url: str, client: Celery
) -> None:
    federation = opened()
    workers.start("well", app=WAYS_OUT)

    def start_doomed(name: str) -> CeleryProcess:
        doomed = workers.start(name, app=WAYS_OUT)
        wait_until(lambda: f"{name}@local" in {entry.name for entry in living(federation).values()})
        wait_for_workers(federation, 2)
        return doomed

    def die(doomed: CeleryProcess) -> None:
        os.killpg(doomed.pid, signal.SIGKILL)
        # Redis gives a message to a fetch whose process is dead, until the kernel has closed its last connection.
        wait_until(lambda: doomed.exit_code is not None)
        time.sleep(0.2)

    die(start_doomed("before"))
    began_s = time.monotonic()
    assert freeze_once(federation).workers == ("well@local",)
    assert time.monotonic() - began_s <= roster.LICENCE_S + 1.5

    doomed = start_doomed("while")
    for number in range(4):  # two for each worker: the doomed one dies with its own
        client.send_task("nap", args=[2.5], kwargs={"tag": f"nap-{number}"})
    wait_until(lambda: len(workers.starts()) == 4)
    with frozen_by(federation) as (frozen, thaw):
        frozen.wait_for_acks()
        die(doomed)
        frozen.drain()
        frozen.confirm()
        facts = thaw()
    assert facts.workers == ("well@local",)
    assert facts.gone == ("while@local (dead)",)
    assert facts.window.drain_ms <= 4000

    doomed = start_doomed("after")
    with frozen_by(federation) as (frozen, thaw):
        frozen.wait_for_acks()
        frozen.drain()
        die(doomed)
        frozen.confirm()  # its ack goes on to count
        facts = thaw()
    assert facts.workers == ("after@local", "well@local")
    check_all_work(workers, redis_url, 100)


def test_worker_is_not_gone_while_something_it_started_works_on(
    opened: Open, workers: Workers, client: Celery
) -> None:
    federation = opened(LYCH_ACK_TIMEOUT_S="1.5")
    doomed = workers.start("doomed", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    client.send_task("fork", args=[5, "works on"])
    wait_until(workers.starts)
    time.sleep(0.2)
    died_s = time.monotonic()
    doomed.send(signal.SIGKILL)  # Celery's children die with it, what they forked does not
    with pytest.raises(FreezeError, match="doomed@local did not ack"):
        freeze_once(federation)
    wait_until(lambda: not living(federation), 8)
    assert time.monotonic() - died_s >= 4


def test_silence_proves_nothing_while_a_child_is_seen_to_live(
    opened: Open, workers: Workers, client: Celery
) -> None:
    federation = opened()
    doomed = workers.start("doomed", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    client.send_task("fork", args=[7, "works on"])
    wait_until(workers.starts)
    time.sleep(0.2)
    died_s = time.monotonic()
    doomed.send(signal.SIGKILL)

    def is_gone() -> bool:
        store = federation.store()
        return bool(gone.gone(store, roster.entries(store), 2))

    wait_until(is_gone)
    assert time.monotonic() - died_s >= 6


def test_broker_that_stands_still_holds_no_freeze(
    opened: Open, workers: Workers, client: Celery, redis_node: RedisNode
) -> None:
    federation = opened()
    workers.start("one", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    assert client.control.ping()  # connected, as after a preflight
    with stopped(redis_node.pid):
        began_s = time.monotonic()
        with frozen_by(federation, federation.ring(client)) as (frozen, thaw):
            frozen.wait_for_acks()
            frozen.drain()
            frozen.confirm()
            thaw()
        assert time.monotonic() - began_s < 3 + 6  # the patience with acks and with the drain
        wait_until(lambda: {entry.state for entry in roster.entries(federation.store()).values()} == {"thawed"}, 3)


def test_broker_that_stands_still_before_the_freeze_is_away(
    opened: Open, client: Celery, redis_node: RedisNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "_STATE_S", 0)
    monkeypatch.setattr(broadcast, "_ANSWER_S", 0)
    federation = opened()
    with stopped(redis_node.pid), pytest.raises(Away, match="does not answer"):
        federation.check_for_strangers(client)


@pytest.mark.parametrize("dies", ["the command", "redis"])
def test_maintenance_mode_that_dies_before_it_stands_is_short(
    dies: str, opened: Open, workers: Workers, client: Celery, redis_url: str, leases: RedisNode
) -> None:
    federation = opened()
    workers.start("one", app=WAYS_OUT)
    wait_for_workers(federation, 1)
    client.send_task("nap", args=[6], kwargs={"tag": "long"})
    wait_until(workers.starts)
    holder = subprocess.Popen([sys.executable, "-m", "lych_checkpoint", "freeze", "--for", "60s", "--reason", "x"],
                              env={**os.environ, **workers.environment, "LYCH_DRAIN_TIMEOUT_S": "2.5"})
    try:
        wait_until(lambda: (lease.read(federation.store()) or gone_lease()).phase == "draining")
        publish(redis_url, 8)
        if dies == "redis":
            with stopped(leases.pid):
                holder.wait()
                ended_at = time.time()
        else:
            holder.kill()
            ended_at = time.time()
        wait_until(lambda: first_start(workers, 0) < float("inf"), LEASE_S + 5)
        assert first_start(workers, 0) <= ended_at + LEASE_S + 1
    finally:
        holder.kill()
        holder.wait()


def living(federation: Federation) -> Mapping[str, Any]:
    """What is left of the roster after a sweep."""
    gone.sweep(federation.store(), 300)
    return roster.entries(federation.store())


def test_two_federations_on_one_redis_and_broker_do_not_touch_each_other(
    opened: Open, workers: Workers, lych_environment: dict[str, str], redis_url: str, client: Celery,
    postgres: PostgresNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = opened()
    postgres.run("psql", "-qc", "drop database if exists neighbour with (force)", "-c", "create database neighbour",
                 "postgres")
    make_repository(tmp_path / "neighbour" / "core", {"README": "another core\n"})
    theirs_environment = {"LYCH_FEDERATION": "neighbour", "LYCH_DATABASE_URL": postgres.url("neighbour"),
                          "LYCH_ROOT": str(tmp_path / "neighbour"), "LYCH_VAULT": str(tmp_path / "their vault")}
    for name, value in theirs_environment.items():
        monkeypatch.setenv(name, value)
    theirs = Federation(Settings.load())
    init(theirs)
    workers.start("ours", app=WAYS_OUT, options=("-Q", "ours"))
    workers.start("theirs", app=WAYS_OUT, options=("-Q", "theirs"), environment=theirs_environment)
    wait_for_workers(ours, 1)
    wait_for_workers(theirs, 1)
    with frozen_by(ours, ours.ring(client)) as (frozen, thaw):
        frozen.wait_for_acks()
        frozen.drain()
        for queue in ("ours", "theirs"):
            client.send_task("record", args=[queue], queue=queue)
        wait_until(workers.ends)
        time.sleep(0.5)
        assert [record["tag"] for record in workers.starts()] == ["theirs"]
        assert freeze_once(theirs).workers == ("theirs@local",)  # inside our freeze, and ending before it
        time.sleep(0.3)
        assert [record["tag"] for record in workers.starts()] == ["theirs"]
        frozen.confirm()
        assert thaw().workers == ("ours@local",)
    wait_until(lambda: len(workers.ends()) == 2)
    document = coordinator.create(ours, coordinator.Request(), client)  # a neighbour's worker is no stranger
    assert document["workers"] == ["ours@local"]
