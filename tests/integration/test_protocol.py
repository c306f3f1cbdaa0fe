"""The event orders that broke weaker designs, against a real Redis and real members."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from lych_checkpoint import freeze
from lych_checkpoint.errors import Away, FreezeError, LockHeld, Refused
from lych_checkpoint.lease import gone, lease, lock, marks, requests, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity
from lych_checkpoint.worker.barrier import Barrier
from lych_checkpoint.worker.listener import listening
from lych_checkpoint.worker.member import Member, clock_s
from ops.servers.redis import RedisNode
from tests.fixtures.client import wait_until


@dataclass
class Task:
    """What the barrier sees of a request."""

    id: str
    name: str = "work"


class Lossy(Store):
    """A client that can be told what its next question's answer meets on its way."""

    def __init__(self, url: str, uuid: str) -> None:
        super().__init__(url, uuid)
        self.meets: list[Callable[[], None]] = []

    def script(self, text: str, keys: list[str], *arguments: str | int) -> list[str]:
        """Ask Redis, and hand out the answer only after what it meets."""
        answer = super().script(text, keys, *arguments)
        if self.meets:
            self.meets.pop(0)()
        return answer


def lost() -> None:
    """The connection ends after Redis did what it was asked."""
    raise Away("the answer is lost", "redis", "try again", "redis-away")


class Worker:
    """A member with its barrier, without Celery around it: the test decides when it looks."""

    def __init__(self, store: Store, name: str, directory: Path, era: int = 0) -> None:
        self.boot = uuid.uuid4().hex
        self.exits: list[int] = []
        self.reasons: list[str] = []
        self.started: list[str] = []
        self.doubt = ""
        self.alive_file = directory / f"{self.boot}.alive"
        self._descriptor = os.open(self.alive_file, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        entry = roster.Entry(name=name, boot=self.boot, pool="solo", identity=Identity.mine(),
                             alive_file=str(self.alive_file), loaded="sha256:1", disk="", generation=era + 1, era=era)
        self.member = Member(store, entry, leave=self._leave,
                             doubt=lambda: self.doubt, disk=lambda: "sha256:1",
                             answer=lambda _store: None)
        self.barrier = Barrier(self._start, exempt=lambda _name: False, places=None,
                               may_start=self.member.may_start, wake=lambda: None, drained=self.member.say,
                               flag=bytearray(1))
        self.member.barrier = self.barrier
        self.tokens: dict[str, Any] = {}

    def _leave(self, code: int, why: str) -> None:
        self.exits.append(code)
        self.reasons.append(why)

    def _start(self, request: Task) -> None:
        self.started.append(request.id)
        pending = self.barrier.tokens.wrap(lambda *_a, **options: options)(None, correlation_id=request.id)
        self.tokens[request.id] = pending

    def end(self, task_id: str) -> None:
        """The pool's callback of a task."""
        self.tokens.pop(task_id)["callback"]()

    def die(self) -> None:
        """End without a word, as kill -9 does."""
        os.close(self._descriptor)


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    made = Store(redis_url, uuid.uuid4().hex)
    yield made
    made.close()


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Callable[..., Worker]:
    return lambda name="one", **more: Worker(store, name, tmp_path, **more)


def terms(**changes: Any) -> freeze.Terms:
    """A freeze's terms, impatient ones."""
    return freeze.Terms(**{"mode": "checkpoint", "reason": "a test", "lease_s": 5.0, "ack_timeout_s": 1.0,
                           "drain_timeout_s": 1.0, "gone_after_s": 300.0, **changes})


def silent(_act: str, _epoch: int) -> None:
    """A control bell that nobody hears."""


def test_coordinators_task_is_let_through_in_its_own_worker_alone(
    store: Store, worker: Callable[..., Worker]
) -> None:
    one, two = worker("one"), worker("two")
    for each in (one, two):
        each.member.look()
        each.barrier.admit(Task("creates"))  # delivered a second time, since the first took so long
    gone.settle(store)
    through = frozenset({(two.boot, "creates")})
    with freeze.thawing(store, terms(drain_timeout_s=0.3, through=through), silent) as (frozen, _thaw):
        one.member.look()
        two.member.look()
        frozen.wait_for_acks()
        with pytest.raises(FreezeError, match="on one and did not end"):
            frozen.drain()
        with pytest.raises(FreezeError, match="one: task creates runs"):
            frozen.confirm()
        one.end("creates")
        frozen.drain()
        frozen.confirm()


def test_request_that_waited_for_a_place_asks_again_whether_it_may_start() -> None:
    sure: list[bool] = [True]
    started: list[str] = []
    barrier = Barrier(lambda request: started.append(request.id), exempt=lambda _name: False, places=lambda: 1,
                      may_start=lambda: sure[0], wake=lambda: None, drained=lambda: None, flag=bytearray(1),
                      blocks=True)
    first = barrier.tokens.take("first", "work")
    waiting = threading.Thread(target=barrier.admit, args=[Task("second")])
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    sure[0] = False  # the process was stopped for long
    barrier.tokens.release(first)
    waiting.join(5)
    assert not waiting.is_alive()
    assert started == []
    assert [one.id for one in barrier.held()] == ["second"]
    sure[0] = True
    barrier.let_go()
    assert started == ["second"]


def test_closed_drained_and_confirmed(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    one.barrier.admit(Task("before"))
    with freeze.thawing(store, terms(), silent) as (frozen, thaw):
        one.member.look()
        frozen.wait_for_acks()
        one.barrier.admit(Task("held"))
        assert one.started == ["before"]
        with pytest.raises(FreezeError, match="before"):
            frozen.drain()
        one.end("before")  # the callback acks at once; no look is needed
        frozen.drain()
        frozen.confirm()
        facts = thaw()
    assert facts.workers == ("one",)
    one.member.look()
    one.barrier.let_go()
    assert one.started == ["before", "held"]


def test_ack_after_an_opening_by_expiry_is_broken_for_good(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    with pytest.raises(FreezeError, match="opened in between"), \
            freeze.thawing(store, terms(lease_s=1.0), silent) as (frozen, _thaw):
        one.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        lease.renew(store, frozen.token, 30)  # W does not see this in time
        for _ in range(3):
            time.sleep(0.4)
            one.member.tick()  # awake all the time, only cut off
        one.member.overdue()
        one.barrier.admit(Task("slipped"))
        assert one.started == ["slipped"]
        one.end("slipped")
        one.member.look()  # sees the renewal, closes and acks again
        frozen.drain()
        frozen.confirm()


def test_ack_whose_answer_was_lost_is_kept_all_the_same(
    store: Store, worker: Callable[..., Worker], redis_url: str
) -> None:
    one = worker()
    one.member._store = lossy = Lossy(redis_url, store.keys.uuid)
    one.member.look()
    gone.settle(store)
    with pytest.raises(FreezeError, match="opened in between"), \
            freeze.thawing(store, terms(lease_s=1.0), silent) as (frozen, _thaw):
        one.member._ticked_s = clock_s()
        lossy.meets = [lambda: None, lost]  # the heartbeat's answer comes, the ack's does not
        with pytest.raises(Away):
            one.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        lease.renew(store, frozen.token, 30)
        one.barrier.admit(Task("held"))
        one.member.overdue()
        assert one.started == []  # it acked as far as anybody else knows
        for _ in range(3):
            time.sleep(0.4)
            one.member.tick()
        one.member.overdue()
        one.barrier.let_go()
        assert one.started == ["held"]
        one.end("held")
        one.member.look()
        frozen.drain()
        frozen.confirm()
    lossy.close()


def test_answer_that_a_sleep_made_old_is_asked_for_again(
    store: Store, worker: Callable[..., Worker], redis_url: str
) -> None:
    one = worker()
    one.member._store = lossy = Lossy(redis_url, store.keys.uuid)
    one.member.look()

    def sleep() -> None:  # as if stopped with the answer in hand, while a freeze begins
        lease.take(store, mode="checkpoint", reason="while it slept", coordinator={}, lowest_epoch=0, lease_s=5)
        time.sleep(roster.LICENCE_S)

    lossy.meets = [sleep]
    one.member.look()
    assert one.member.frozen
    lossy.close()


def test_worker_that_opened_and_left_spoils_the_freeze(store: Store, worker: Callable[..., Worker]) -> None:
    one, two = worker(), worker("two")
    one.member.look()
    two.member.look()
    gone.settle(store)
    with pytest.raises(FreezeError, match="opened in between, and left"), \
            freeze.thawing(store, terms(lease_s=1.0), silent) as (frozen, _thaw):
        one.member.look()
        two.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        lease.renew(store, frozen.token, 30)
        time.sleep(1.1)
        one.member.overdue()  # cut off: it opens by expiry, and works
        two.member.look()
        one.member.end()  # a warm shutdown takes its entry and its ack away
        frozen.confirm()


def test_worker_that_registers_late_is_looked_at_too(store: Store, worker: Callable[..., Worker]) -> None:
    worker().member.look()
    gone.settle(store)
    late = worker("late")
    with pytest.raises(FreezeError, match="late: no ack"), \
            freeze.thawing(store, terms(ack_timeout_s=0.5), silent) as (frozen, _thaw):
        for boot in roster.entries(store):
            roster.ack(store, boot, roster.Claim(
                token=frozen.token, epoch=frozen.epoch, until_ms=store.now_ms() + 5000,
                ack=roster.Ack(in_flight=(), tasks={}, exempt=(), broken=False)))
        frozen.wait_for_acks()
        frozen.drain()
        roster.beat(store, late.member._described())
        frozen.confirm()


def test_worker_asleep_through_a_wipe_starts_nothing_before_it_looked(
    store: Store, worker: Callable[..., Worker], redis_url: str
) -> None:
    one = worker()
    one.member.look()
    redis.Redis.from_url(redis_url).flushall()
    one.doubt = "a restore came while it slept"
    one.member._ticked_s -= roster.LICENCE_S * 2
    one.barrier.admit(Task("stale"))
    assert one.started == []
    assert one.exits == [75]


def test_sleep_is_not_forgotten_because_the_listener_woke_first(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    one.member._ticked_s -= roster.LICENCE_S * 2
    lease.take(store, mode="checkpoint", reason="while it slept", coordinator={}, lowest_epoch=0, lease_s=5)
    one.member.tick()  # its next act is to look, but the main loop is faster
    one.barrier.admit(Task("stale"))
    assert one.started == []
    assert one.member.frozen


def test_freeze_ends_in_time_when_redis_does_not_answer(
    store: Store, worker: Callable[..., Worker], redis_node: RedisNode
) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    with listening(store, one.member):
        lease.take(store, mode="checkpoint", reason="a test", coordinator={}, lowest_epoch=0, lease_s=2)
        one.member.look()
        assert one.member._freeze is not None
        ends_s = one.member._freeze.until_s
        one.barrier.admit(Task("held"))
        assert redis_node.pid is not None
        os.kill(redis_node.pid, signal.SIGSTOP)
        try:
            while one.barrier.closed:
                assert clock_s() < ends_s + 1
                time.sleep(0.01)
            assert clock_s() >= ends_s
            one.barrier.let_go()  # as Celery's main loop does when woken
            assert one.started == ["held"]
            assert clock_s() < ends_s + 1
        finally:
            os.kill(redis_node.pid, signal.SIGCONT)


def test_slept_worker_goes_on_when_nothing_happened(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    one.member._ticked_s -= roster.LICENCE_S * 2
    one.barrier.admit(Task("fresh"))
    assert one.started == ["fresh"]


def test_worker_that_cannot_know_says_so_and_speaks_of_no_restore(
    store: Store, worker: Callable[..., Worker]
) -> None:
    one = worker()
    one.member.look()
    one.doubt = "PostgreSQL cannot be reached"
    one.member.connection_renewed()
    assert one.exits == [75]
    assert one.reasons == ["the connection was lost: PostgreSQL cannot be reached"]


def test_listener_outlives_what_it_did_not_foresee(
    store: Store, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    one.member.look()
    tick, left = one.member.tick, [RuntimeError("odd"), RuntimeError("odd again")]

    def fail_at_first() -> None:
        if left:
            raise left.pop()
        tick()

    monkeypatch.setattr(one.member, "tick", fail_at_first)
    with listening(store, one.member) as thread:
        wait_until(lambda: not left)
        lease.take(store, mode="checkpoint", reason="a test", coordinator={}, lowest_epoch=0, lease_s=30)
        wait_until(lambda: one.member.frozen, 5)
        assert thread.is_alive()


def test_worker_frozen_for_a_restore_never_thaws_by_absence(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    lease.take(store, mode="restore", reason="a test", coordinator={}, lowest_epoch=0, lease_s=1)
    one.member.look()
    assert one.member.frozen
    time.sleep(1.1)
    one.member.look()
    one.barrier.admit(Task("never"))
    assert one.exits == [75]
    assert one.started == []


def test_worker_frozen_for_a_restore_thaws_by_its_token(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    taken = lease.take(store, mode="restore", reason="a test", coordinator={}, lowest_epoch=0, lease_s=5)
    one.member.look()
    lease.drop(store, taken.token)
    one.member.look()
    one.barrier.admit(Task("after"))
    assert (one.exits, one.started) == ([], ["after"])


def test_another_freeze_does_not_release_a_worker_frozen_for_a_restore(
    store: Store, worker: Callable[..., Worker]
) -> None:
    one = worker()
    one.member.look()
    lease.take(store, mode="restore", reason="a test", coordinator={}, lowest_epoch=0, lease_s=0.5)
    one.member.look()
    time.sleep(0.6)  # its coordinator died
    lease.take(store, mode="checkpoint", reason="another", coordinator={}, lowest_epoch=0, lease_s=5)
    one.member.look()
    assert one.exits == [75]


def test_roster_is_as_old_as_a_licence_that_was_renewed_just_before_a_sleep(
    store: Store, worker: Callable[..., Worker], redis_url: str
) -> None:
    one = worker()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    one.member.look()
    began_s = time.monotonic()
    with freeze.thawing(store, terms(), silent) as (frozen, _thaw):
        assert time.monotonic() - began_s >= roster.TRUST_S - 0.1
        one.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        frozen.confirm()


def test_worker_frozen_for_a_restore_leaves_when_redis_is_away(
    worker: Callable[..., Worker], store: Store, tmp_path: Path
) -> None:
    one = worker()
    one.member.look()
    lease.take(store, mode="restore", reason="a test", coordinator={}, lowest_epoch=0, lease_s=30)
    one.member.look()
    one.member._store = Store("redis://127.0.0.1:1/0", store.keys.uuid)
    for _ in range(2):
        with pytest.raises(Away):
            one.member.look()
        one.member.overdue()
    assert one.exits == [75]


def test_worker_that_registers_while_a_restore_closes_leaves(store: Store, worker: Callable[..., Worker]) -> None:
    marks.mark_journal(store, "closing")
    one = worker()
    one.member.look()
    assert one.exits == [75]


def test_worker_of_an_older_era_leaves(store: Store, worker: Callable[..., Worker]) -> None:
    marks.mark_restored(store, 7)
    older, newer = worker("older", era=6), worker("newer", era=7)
    older.member.look()
    newer.member.look()
    assert (older.exits, newer.exits) == ([75], [])


def test_dead_worker_is_gone_only_by_proof(store: Store, worker: Callable[..., Worker]) -> None:
    one, two = worker("one"), worker("two")
    one.member.look()
    two.member.look()
    time.sleep(roster.LICENCE_S + 0.2)
    assert gone.gone(store, roster.entries(store), 300) == {}  # silent, but its processes live
    one.die()
    assert list(gone.gone(store, roster.entries(store), 300)) == [one.boot]
    two.die()


def test_nobody_thaws_or_renews_without_the_token(store: Store) -> None:
    taken = lease.take(store, mode="checkpoint", reason="", coordinator={}, lowest_epoch=0, lease_s=1)
    assert lease.drop(store, "guess")[0] is False
    assert lease.renew(store, "guess", 60) == 0
    with pytest.raises(FreezeError, match="in force"):
        lease.take(store, mode="checkpoint", reason="", coordinator={}, lowest_epoch=0, lease_s=1)
    time.sleep(1.1)
    assert lease.renew(store, taken.token, 60) == 0  # a renewal never creates
    assert lease.read(store) is None


def test_epoch_only_grows_even_through_a_wipe(store: Store, redis_url: str) -> None:
    first = lease.take(store, mode="checkpoint", reason="", coordinator={}, lowest_epoch=0, lease_s=1)
    redis.Redis.from_url(redis_url).flushall()
    known = first.epoch + 5_000_000_000
    second = lease.take(store, mode="checkpoint", reason="", coordinator={}, lowest_epoch=known, lease_s=1)
    assert second.epoch == known + 1


def test_lost_lease_cannot_be_confirmed(store: Store, worker: Callable[..., Worker], redis_url: str) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    with pytest.raises(FreezeError, match="not ours any more"), \
            freeze.thawing(store, terms(), silent) as (frozen, _thaw):
        one.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        redis.Redis.from_url(redis_url).flushall()
        frozen.confirm()


def test_freshly_emptied_roster_is_not_trusted(store: Store) -> None:
    taken = lease.take(store, mode="checkpoint", reason="", coordinator={}, lowest_epoch=0, lease_s=5)
    _at, _until, problems = roster.confirm(store, taken.token, taken.epoch, set(), set())
    assert problems == ["roster: Redis was emptied a moment ago"]


def test_parked_task_counts_as_drained_and_wakes_only_outside_a_freeze(
    store: Store, worker: Callable[..., Worker]
) -> None:
    one, other = worker(), worker("other")
    one.member.look()
    gone.settle(store)
    one.barrier.admit(Task("parks"))
    requests.park(store, "parks", other.boot, "work")  # another worker's record does not count for this one
    with freeze.thawing(store, terms(drain_timeout_s=0.3), silent) as (frozen, _thaw):
        one.member.look()
        frozen.wait_for_acks()
        with pytest.raises(FreezeError, match="parks"):
            frozen.drain()
        requests.park(store, "parks", one.boot, "work")
        frozen.drain()
        frozen.confirm()
        assert requests.unpark(store, "parks") is False
    assert requests.unpark(store, "parks") is True


def test_task_parked_for_one_freeze_is_not_parked_in_the_next(store: Store, worker: Callable[..., Worker]) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    one.barrier.admit(Task("parks"))
    with freeze.thawing(store, terms(), silent) as (frozen, _thaw):
        one.member.look()
        frozen.wait_for_acks()
        assert requests.park_while_frozen(store, "parks", one.boot, "work") is True
        frozen.drain()
        frozen.confirm()
    with freeze.thawing(store, terms(drain_timeout_s=0.3), silent) as (frozen, _thaw):  # Redis was away: still noted
        one.member.look()
        frozen.wait_for_acks()
        with pytest.raises(FreezeError, match=r"work \[parks\] has run for \d+\.\d s on one and did not end"):
            frozen.drain()
        with pytest.raises(FreezeError, match="task parks runs"):
            frozen.confirm()
        assert requests.park_while_frozen(store, "parks", one.boot, "work") is True
        frozen.drain()
        frozen.confirm()
    assert requests.park_while_frozen(store, "parks", one.boot, "work") is False
    assert requests.parked(store) == {}


@pytest.mark.parametrize("late", ["a worker's lease ended", "somebody else thawed"])
def test_manifest_claims_no_quiet_after_what_was_proven(
    store: Store, worker: Callable[..., Worker], late: str
) -> None:
    one = worker()
    one.member.look()
    gone.settle(store)
    with freeze.thawing(store, terms(lease_s=1.0), silent) as (frozen, thaw):
        one.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        frozen.confirm()
        confirmed_s = store.now_ms() / 1000
        if late == "somebody else thawed":
            lease.drop(store, frozen.token)
        time.sleep(1.2)  # the coordinator was stopped; its lease is renewed when it goes on
        facts = thaw()
    assert facts.thawed_at <= confirmed_s + (0 if late == "somebody else thawed" else 1)


def test_workers_of_different_code_are_not_one_body(store: Store, worker: Callable[..., Worker]) -> None:
    one, two = worker("one"), worker("two")
    two.member._entry = replace(two.member._entry, loaded="sha256:2")
    one.member.look()
    two.member.look()
    gone.settle(store)
    with pytest.raises(Refused, match="different code"), freeze.thawing(store, terms(), silent) as (frozen, _thaw):
        one.member.look()
        two.member.look()
        frozen.wait_for_acks()
        frozen.drain()
        frozen.check_one_body()


def test_lock_is_held_once_and_a_dead_owner_is_taken_over(store: Store, redis_url: str) -> None:
    with lock.held(store, "create"):
        assert lock.owner(store) == "create"
        with pytest.raises(LockHeld, match="create runs as pid"), lock.held(store, "restore"):
            pass
    pid = os.fork()
    if pid == 0:
        with lock.held(Store(redis_url, store.keys.uuid), "create"):
            os._exit(0)  # dies with the lock in Redis
    os.waitpid(pid, 0)
    assert lock.owner(store) == "create"
    with lock.held(store, "restore"):
        assert lock.owner(store) == "restore"


def test_dead_owners_lock_is_taken_over_by_one_of_two(store: Store, redis_url: str) -> None:
    pid = os.fork()
    if pid == 0:
        with lock.held(Store(redis_url, store.keys.uuid), "create"):
            os._exit(0)
    os.waitpid(pid, 0)
    late = Lossy(redis_url, store.keys.uuid)
    with ExitStack() as stack:
        late.meets = [lambda: (stack.enter_context(lock.held(store, "restore")), None)[1]]
        with pytest.raises(LockHeld, match="restore runs"), lock.held(late, "prune"):
            pass
        assert lock.owner(store) == "restore"
    late.close()


def test_killed_requests_stand_in_no_line(store: Store) -> None:
    now_ms = store.now_ms()
    for request in ("killed", "mine", "waits"):
        requests.wait_in_line(store, request, now_ms)
    requests.wait_in_line(store, "later", now_ms + 1)
    store.client.zadd(store.keys["seen"], {"killed": now_ms - 60_000})  # it said so a minute ago, and no more
    assert requests.waiting_until(store, now_ms, beside="mine") == 1
    requests.leave_line(store, "waits")
    assert requests.waiting_until(store, now_ms, beside="mine") == 0
    assert store.client.zrange(store.keys["waiting"], 0, -1) == ["mine", "later"]


def test_redis_away_is_an_error_of_ours() -> None:
    nowhere = Store("redis://127.0.0.1:1/0", "x")
    with pytest.raises(Away) as caught:
        nowhere.now_ms()
    assert caught.value.exit_code == 75
    assert "127.0.0.1:1" in caught.value.where
