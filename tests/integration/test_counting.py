"""What runs is counted until its body has ended, however it ends; and what ended is not waited for."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from celery import chord, group, signature

from tests.fixtures.stamps import Yard

Open = Callable[..., Yard]


def test_revoked_task_that_does_not_die_is_waited_for(yard: Open) -> None:
    federation = yard()
    federation.start()
    federation.settle(1)
    task = federation.app.send_task("walk", args=["deaf", 2.5], kwargs={"stubborn": True})
    federation.wait_for("step", 1)
    federation.app.control.revoke(task.id, terminate=True)
    time.sleep(0.3)  # Celery's own books are empty now
    with federation.freeze():
        time.sleep(0.5)
    federation.check_quiet()
    assert [one.kind for one in federation.stamps()][-1] == "end"
    assert federation.stamps("end")[0].at <= federation.windows[0].drained_at


def test_killed_child_is_not_waited_for_and_its_task_comes_back_after_the_thaw(yard: Open) -> None:
    federation = yard(task_acks_late=True, task_reject_on_worker_lost=True)
    federation.start()
    federation.settle(1)
    federation.send("walk", "victim", 4)
    federation.wait_for("step", 1)
    child = federation.stamps("begin")[0].pid
    began_s = time.monotonic()
    os.kill(child, signal.SIGKILL)
    with federation.freeze():
        assert time.monotonic() - began_s < 7  # Celery itself looks for dead children every 5 s
        time.sleep(0.5)
    federation.check_quiet()
    federation.walks(range(4))
    federation.wait_for("end", 5)
    assert [one.tag for one in federation.stamps("begin")].count("victim") == 2


@pytest.mark.parametrize("stubborn", [False, True])
def test_task_over_its_hard_time_limit_is_waited_for_until_its_child_is_dead(stubborn: bool, yard: Open) -> None:
    """Celery says that it failed before it ends the child: with SIGTERM, and after a while with SIGKILL."""
    federation = yard(task_time_limit=2)
    federation.start()
    federation.settle(1)
    federation.send("walk", "endless", 60, kwargs={"stubborn": stubborn})
    federation.wait_for("step", 1)
    with federation.freeze():
        time.sleep(0.5)
    federation.check_quiet()
    steps = [one.at for one in federation.stamps("step")]
    assert 1.5 < steps[-1] - steps[0] < 4
    federation.walks(range(4))
    federation.wait_for("end", 4)


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_task_that_waits_for_a_greenlets_place_does_not_begin_in_a_freeze(pool: str, yard: Open) -> None:
    federation = yard()
    federation.start(pool=pool, concurrency=1)
    federation.settle(1)
    federation.walks(range(3), 1.0)
    federation.wait_for("step", 1)
    with federation.freeze():
        time.sleep(0.5)
        assert [one.tag for one in federation.stamps("begin")] == ["0"]
    federation.check_quiet()
    federation.check_once(3)


def test_greenlets_over_their_hard_time_limit_give_their_places_back(yard: Open) -> None:
    federation = yard(task_time_limit=1)
    federation.start(pool="gevent")
    federation.settle(1)
    federation.walks(range(3), 60)
    federation.wait_for("step", 3)
    federation.walks(range(3, 6))
    federation.wait_for("end", 3)
    with federation.freeze():
        time.sleep(0.2)
    federation.check_quiet()


def test_pool_that_only_inherits_from_solo_is_waited_for(yard: Open) -> None:
    """A body of Celery's own solo pool ends within the start of its request; one of a user's pool may not."""
    federation = yard(worker_pool="tests.fixtures.pools:Aside")
    federation.start()
    federation.settle(1)
    federation.walks(range(3), 1.0)
    federation.wait_for("begin", 1)
    with federation.freeze():
        time.sleep(1.5)
    federation.check_quiet()
    federation.check_once(3)


def test_children_that_serve_one_task_each(yard: Open) -> None:
    federation = yard(worker_max_tasks_per_child=1)
    federation.start()
    federation.settle(1)
    federation.walks(range(12), 0.1)
    federation.wait_for("begin", 1)
    for number in range(3):
        with federation.freeze():
            time.sleep(0.3)
        federation.wait_for("end", 3 * (number + 1))
    federation.check_quiet()
    federation.check_once(12)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "eventlet"])
def test_retries_limits_etas_groups_and_chords_through_many_freezes(pool: str, yard: Open) -> None:
    federation = yard()
    federation.start(pool=pool, concurrency=3)
    federation.settle(1)
    app = federation.app

    def part(number: int) -> object:
        return signature("walk", args=[number, 0.1], app=app)

    many = group([part(number) for number in range(100, 110)], app=app).apply_async()
    summed = chord([part(number) for number in range(200, 210)], app=app)(signature("total", ["sum"], app=app))
    retried = [federation.send("stumble", f"retried-{number}", 2) for number in range(3)]
    for number in range(6):
        federation.send("fail", f"failed-{number}")
        federation.send("limited", f"limited-{number}")
    federation.walks(range(10), 0.1, countdown=1)
    for _ in range(4):
        with federation.freeze():
            time.sleep(0.5)
        time.sleep(0.4)
    assert sorted(many.get(timeout=30)) == list(range(100, 110))
    assert summed.get(timeout=30) == sum(range(200, 210))
    assert [one.get(timeout=30) for one in retried] == [f"retried-{number}" for number in range(3)]
    federation.wait_for("end", 10 + 10 + 1 + 3 + 6 + 10)
    federation.wait_for("begin", 10 + 10 + 1 + 3 + 6 + 6 + 10)
    federation.check_quiet()
    assert max(Counter(one.tag for one in federation.stamps("begin")).values()) == 1
    assert {one.tag: times for one, times in Counter(federation.stamps("end")).items() if times > 1} == {}
