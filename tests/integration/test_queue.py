"""Messages from a future that is gone: put aside by every pool and over both brokers, never lost, never run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, signals

from lych_checkpoint import coordinator, eras, gate, journal, quarantine, restore
from lych_checkpoint.cli.words import plan_lines
from lych_checkpoint.eras import Present, Stamp
from lych_checkpoint.errors import Away, GateUnsure, LockHeld, Refused, UnknownName
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import marks
from lych_checkpoint.stamping import Stamper
from lych_checkpoint.status import status
from lych_checkpoint.vault.quarantine import Message
from ops.servers.celery import command
from ops.servers.rabbitmq import RabbitNode
from ops.servers.redis import RedisNode
from tests.fixtures.client import wait_until
from tests.fixtures.rabbitmq import need_rabbitmq
from tests.fixtures.workers import RECORDING, Workers

Opened = Callable[..., Federation]
_POOLS = ("solo", "threads", "gevent", "eventlet")


class Publisher:
    """Publishes `record` tasks as a process with the plugin does, or as one without."""

    def __init__(self, broker: str, federation: Federation) -> None:
        self._app = Celery("publisher", broker=broker, set_as_current=False)
        self._federation = federation

    def send(self, *tags: str, task: str = "record", stamped: bool = True, **options: Any) -> None:
        """Publish one task for each tag."""
        stamper = Stamper(lambda: self._federation)  # a process of its own: it knows nothing yet
        if stamped:
            signals.before_task_publish.connect(stamper.on_publish, weak=False)
        try:
            for tag in tags:
                self._app.send_task(task, args=[tag], ignore_result=True, **options)
        finally:
            signals.before_task_publish.disconnect(stamper.on_publish)

    def release(self, ids: list[str]) -> list[str]:
        """Release from quarantine; all if ``ids`` is empty."""
        return quarantine.release(self._federation, ids, present=False, app=self._app,
                                  stamp=Stamper(lambda: self._federation).now)

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()


@pytest.fixture
def federation(opened: Opened) -> Federation:
    """The test's own federation, never restored."""
    return opened()


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[str]:
    """A broker beside the lease's Redis database."""
    if request.param == "redis":
        yield redis_url.replace("/0", "/1")
        return
    need_rabbitmq()
    with RabbitNode.start_new(tmp_path) as node:
        yield node.url


def put_aside(federation: Federation) -> set[str]:
    """Return the tags of what is in quarantine, from the bodies."""
    return {json.loads(one.body)[0][0] for one in federation.vault.quarantine.messages()}


def published(stamper: Stamper, federation: Federation) -> Stamp:
    """Return the stamp of a message of now."""
    headers: dict[str, str] = {}
    stamper.on_publish(headers=headers)
    found = Stamp.loads(headers[f"lych-{federation.uuid[:8]}"])
    assert found is not None
    return found


def ended(workers: Workers) -> list[str]:
    return sorted(one["tag"] for one in workers.ends())


def test_what_waited_at_the_freeze_runs_and_what_came_after_is_put_aside(
    broker: str, federation: Federation, workers: Workers, redis_url: str,
) -> None:
    workers.environment["LYCH_TEST_BROKER_URL"] = broker

    def checkpoint(*argv: str) -> Any:
        done = command("celery", "-A", RECORDING, "checkpoint", *argv, environment=workers.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    publisher = Publisher(broker, federation)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    publisher.send("before", "before too")
    publisher.send("before, due later", eta=soon)
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    publisher.send("after", priority=3, reply_to="somebody")
    publisher.send("after, due later", eta=soon)
    publisher.send("unknown", stamped=False)
    plan = checkpoint("restore", sealed, "--dry-run", "--json")
    assert plan["queues"]["waiting"]["celery"] == 6
    assert "messages wait: 6 in celery; those from after the checkpoint are put aside" in plan_lines(plan)
    restore.restore(federation, sealed)
    publisher.send("new")
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()  # the lineage alone says what happened
    publisher.send("new, of a wiped Redis")
    workers.start()
    runs = ["before", "before too", "before, due later", "new", "new, of a wiped Redis"]
    aside = {"after", "after, due later", "unknown"}
    wait_until(lambda: ended(workers) == runs and put_aside(federation) == aside)
    kept = {json.loads(one.body)[0][0]: one for one in federation.vault.quarantine.messages()}
    after = kept["after"]
    assert json.loads(after.body)[:2] == [["after"], {}]
    assert (after.task, after.queue, after.routing_key, after.retries) == ("record", "celery", "celery", 0)
    assert (after.content_type, after.properties["priority"], after.properties["reply_to"]) == (
        "application/json", 3, "somebody")
    assert after.headers["id"] == after.id == after.properties["correlation_id"]
    assert "after the checkpoint" in after.why
    assert "when it was published" in kept["unknown"].why
    publisher.send("newer")  # Redis has learnt the generation again, from the worker
    wait_until(lambda: "newer" in ended(workers))
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.get(federation.store().keys["restored"]) == str(federation.vault.last_lineage()["generation"])

    listed = {one["id"]: one for one in checkpoint("queue", "list", "--json")["messages"]}
    assert set(listed) == {one.id for one in kept.values()}
    assert listed[after.id].items() >= {"task": "record", "queue": "celery", "why": after.why, "present": False,
                                        "arguments": ["['after']", "{}"]}.items()
    assert status(federation)["quarantined"] == 3
    assert checkpoint("queue", "release", after.id[:13], "--json")["released"] == [after.id]
    wait_until(lambda: "after" in ended(workers))
    with federation.vault.quarantine.held(), pytest.raises(LockHeld):
        quarantine.drop(federation, [kept["unknown"].id])
    assert quarantine.drop(federation, [kept["unknown"].id]) == [kept["unknown"].id]
    with pytest.raises(UnknownName):
        quarantine.drop(federation, [after.id])
    federation.vault.quarantine.put(replace(after, id="nobody's", routing_key="of nobody"))
    if broker.startswith("amqp"):
        with pytest.raises(Refused, match="no queue takes"):
            publisher.release(["nobody's"])
        assert put_aside(federation) == {"after", "after, due later"}
    quarantine.drop(federation, ["nobody's"])
    assert len(publisher.release([])) == 1
    wait_until(lambda: ended(workers) == sorted([*runs, "newer", "after", "after, due later"]))
    assert put_aside(federation) == set()
    publisher.close()


def test_a_person_releases_the_present_or_all_and_drops_by_command(
    federation: Federation, workers: Workers, redis_url: str
) -> None:
    workers.environment["LYCH_TEST_BROKER_URL"] = redis_url.replace("/0", "/1")
    federation.vault.append_lineage("restore", 5, "sha256:0", base=1, epoch=9, frozen_ms=100)
    header = eras.header(federation.uuid)
    for name, stamp in (("now", "5:9:200"), ("gone", "0:10:200"), ("also gone", "0:10:201"), ("unwanted", "")):
        federation.vault.quarantine.put(Message(
            id=name, task="record", queue="celery", exchange="", routing_key="celery", content_encoding="utf-8",
            content_type="application/json", headers={"id": name, "task": "record", header: stamp},
            properties={}, body=json.dumps([[name], {}, {}]).encode(), retries=0, why="a test",
            at="2026-01-01T00:00:00Z"))

    def queue(*argv: str) -> Any:
        done = command("celery", "-A", RECORDING, "checkpoint", "queue", *argv, "--json",
                       environment=workers.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def waiting() -> list[str]:
        with redis.Redis.from_url(redis_url.replace("/0", "/1")) as client:
            return sorted(json.loads(one)["headers"]["id"] for one in client.lrange("celery", 0, -1))

    assert queue("release", "--present")["released"] == ["now"]
    assert (waiting(), put_aside(federation)) == (["now"], {"gone", "also gone", "unwanted"})
    assert queue("drop", "unwanted", "--yes")["dropped"] == ["unwanted"]
    assert sorted(queue("release", "--all")["released"]) == ["also gone", "gone"]
    assert (waiting(), put_aside(federation)) == (["also gone", "gone", "now"], set())


def test_every_pool_puts_aside_and_a_kept_policy_does_not(
    federation: Federation, workers: Workers, redis_url: str,
) -> None:
    publisher = Publisher(redis_url, federation)
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    queues = (*_POOLS, "kept")
    for queue in queues:
        publisher.send(*(f"gone {number} {queue}" for number in range(20)), queue=queue)
    restore.restore(federation, sealed)
    for queue in queues:
        publisher.send(f"new {queue}", queue=queue)
    for pool in _POOLS:
        workers.start(pool, pool=pool, options=("-Q", pool), wait=False)
    workers.start("kept", pool="solo", options=("-Q", "kept"), wait=False,
                  environment={"LYCH_QUEUE_POLICY": "keep"})
    runs = sorted([*(f"new {queue}" for queue in queues), *(f"gone {number} kept" for number in range(20))])
    wait_until(lambda: ended(workers) == runs, 60)
    assert put_aside(federation) == {f"gone {number} {pool}" for number in range(20) for pool in _POOLS}
    publisher.close()


def test_retry_stays_of_its_generation_and_what_cannot_be_put_aside_is_not_lost(
    federation: Federation, workers: Workers, redis_url: str,
) -> None:
    publisher = Publisher(redis_url, federation)
    publisher.send("tried again", task="retry_once", kwargs={"queue": "later"})
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    publisher.send("after", queue="other")
    restore.restore(federation, sealed)
    folder = federation.vault.root / "quarantine"
    folder.write_bytes(b"")  # no directory can be made here, not even by root
    worker = workers.start(wait=False, options=("-Q", "other"))
    assert worker.wait_exit() == 75
    assert "cannot be put aside" in worker.text
    folder.unlink()
    workers.start("two", options=("-Q", "celery,other"))
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: put_aside(federation) == {"after"} and client.llen("later") == 1)
        headers = json.loads(client.lindex("later", 0))["headers"]
    name = f"lych-{federation.uuid[:8]}"
    assert headers["retries"] == 1
    assert headers[name].startswith("0:")
    assert [one["tag"] for one in workers.starts()] == ["tried again"]
    called = command("celery", "-A", RECORDING, "call", "record", "--args", '["called"]', "--queue", "other",
                     environment=workers.environment)
    assert called.returncode == 0
    wait_until(lambda: ended(workers) == ["called"])  # `install` stamps what the app publishes
    restore.restore(federation, restore.newest_safety(federation))
    assert [one["present"] for one in quarantine.listed(federation)] == [True]  # undone: it may run after all
    publisher.close()


def test_a_publisher_pays_no_round_trip_for_a_message_and_keeps_what_it_knew(
    federation: Federation, redis_node: RedisNode,
) -> None:
    stamper = Stamper(lambda: federation)
    messages: list[dict[str, str]] = [{} for _ in range(2000)]
    began_s = time.monotonic()
    for headers in messages:
        stamper.on_publish(headers=headers)
    spent_s = time.monotonic() - began_s
    with redis.Redis.from_url(redis_node.url) as client:
        assert client.info("commandstats")["cmdstat_time"]["calls"] <= 1 + spent_s
    stamps = [Stamp.loads(headers[f"lych-{federation.uuid[:8]}"]) for headers in messages]
    assert [one.at_ms for one in stamps if one] == sorted(one.at_ms for one in stamps if one)
    assert {one.era for one in stamps if one} == {0}
    kept = dict(messages[0])
    stamper.on_publish(headers=kept)
    assert kept == messages[0]
    marks.mark_restored(federation.store(), 7)
    wait_until(lambda: published(stamper, federation).era == 7)
    with redis.Redis.from_url(redis_node.url) as client:
        client.flushdb()
    child = os.fork()
    if not child:
        known: dict[str, str] = {}
        stamper.on_publish(headers=known)
        os._exit(0 if known else 1)
    assert os.waitpid(child, 0)[1] == 0
    redis_node.kill()
    with pytest.raises(Away):
        stamper.now()
    time.sleep(1.1)
    later = published(stamper, federation)
    assert later.era == 7
    assert later.at_ms > stamps[-1].at_ms + 1000  # type: ignore[union-attr]
    nothing: dict[str, str] = {}
    Stamper(lambda: federation).on_publish(headers=nothing)
    assert nothing == {}


def test_a_worker_waits_for_a_restore_that_has_not_yet_written_its_line(federation: Federation) -> None:
    journal.begin(federation.vault, checkpoint="any", ticket="t", generation=5, epoch=1)
    with pytest.raises(GateUnsure):
        gate.present(federation, 5)
    assert gate.present(federation, 0) == Present(era=0)
    journal.close(federation.vault, "a test")
    assert gate.present(federation, 5) == Present(era=5)
