"""The event orders that broke weaker designs, on real Celery workers; `test_protocol` has them step by step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import coordinator, freeze, gate, journal
from lych_checkpoint.errors import FreezeError
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lease, roster
from lych_checkpoint.lease.connection import Store
from ops.chaos.proxy import Wire, exchange
from ops.servers.redis import RedisNode
from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.workers import Workers

Open = Callable[..., Federation]
LEASE_S = 2.0
#: A restore that is stopped as soon as its journal says `closing`.
_STOPPED_CLOSING = """
import os, signal
from lych_checkpoint.cli import main
from lych_checkpoint.restoration import Restoration
advance = Restoration._advance
def stopping(self, phase, **facts):
    advance(self, phase, **facts)
    if phase == "closing" and not facts:
        os.kill(os.getpid(), signal.SIGSTOP)
Restoration._advance = stopping
main(["restore", "latest", "--yes"])
"""


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[RedisNode]:
    """A Redis for the leases alone."""
    with RedisNode.start_new(tmp_path / "leases", persistence="none") as node:
        yield node


@pytest.fixture
def wire(leases: RedisNode) -> Iterator[Wire]:
    """One worker's way to it."""
    with exchange() as made:
        yield made.wire(leases.port)


@pytest.fixture
def lych_environment(lych_environment: dict[str, str], leases: RedisNode, redis_url: str) -> dict[str, str]:
    """The usual settings, a short lease, and the leases apart from broker and records."""
    return {**lych_environment, "LYCH_REDIS_URL": leases.url, "LYCH_TEST_BROKER_URL": redis_url,
            "LYCH_TEST_RECORDS_URL": redis_url, "LYCH_LEASE_S": str(LEASE_S)}


def begun(workers: Workers) -> float:
    """When the first task began."""
    return min((record["at"] for record in workers.starts()), default=float("inf"))


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_worker_that_misses_a_renewal_opens_and_spoils_the_freeze(
    pool: str, opened: Open, workers: Workers, wire: Wire, redis_url: str
) -> None:
    """Re-close: its ack after that looks as good as any other."""
    federation = opened()
    workers.start("one", pool=pool, environment={"LYCH_REDIS_URL": f"redis://127.0.0.1:{wire.port}/0"})
    wait_for_workers(federation, 1)
    store = federation.store()
    with pytest.raises(FreezeError, match="one@local: it opened in between"), \
            freeze.thawing(store, federation.terms(freeze.CHECKPOINT, "a test"), lambda *_: None) as (frozen, _thaw):
        frozen.wait_for_acks()
        frozen.drain()
        wire.stall()
        publish(redis_url, 4)
        stalled_at = time.time()
        wait_until(lambda: begun(workers) < float("inf"), LEASE_S + 5)
        assert begun(workers) <= stalled_at + LEASE_S + 1
        wait_until(lambda: len(workers.ends()) == 4)
        standing = lease.read(store)
        assert standing is not None
        assert standing.token == frozen.token  # renewed all the time
        wire.mend()
        wait_until(lambda: [(one.broken, one.in_flight) for one in roster.call(store, frozen.epoch)[1].values()]
                   == [(True, ())])
        frozen.confirm()


def test_worker_asleep_through_a_wipe_starts_nothing_in_the_window(
    opened: Open, workers: Workers, leases: RedisNode, redis_url: str
) -> None:
    """The roster is empty and old enough to be trusted when the freeze begins; the worker wakes inside it."""
    federation = opened()
    worker = workers.start("one")
    wait_for_workers(federation, 1)
    os.killpg(worker.pid, signal.SIGSTOP)
    try:
        leases.kill()
        leases.start()
        publish(redis_url, 4)
        store = federation.store()
        gone.settle(store)
        assert roster.entries(store) == {}
        with freeze.thawing(store, federation.terms(freeze.CHECKPOINT, "a test"), lambda *_: None) as (frozen, thaw):
            frozen.wait_for_acks()
            frozen.drain()
            os.killpg(worker.pid, signal.SIGCONT)
            wait_until(lambda: _acked(store, frozen.epoch), 10)
            time.sleep(0.5)
            assert workers.starts() == []
            frozen.confirm()
            facts = thaw()
    finally:
        os.killpg(worker.pid, signal.SIGCONT)
    wait_until(lambda: len(workers.ends()) == 4)
    assert begun(workers) >= facts.thawed_at


def _acked(store: Store, epoch: int) -> bool:
    return bool(roster.call(store, epoch)[1])


def test_restore_that_does_not_look_again_is_undone(
    opened: Open, workers: Workers, federation_root: Path, database: str, redis_url: str
) -> None:
    """Its lease ended in its sleep: workers left, and may have begun to start again on the pair that stands."""
    federation = opened()
    with psycopg.connect(database) as connection:
        connection.execute("create table version as select 1 as number")
    coordinator.create(federation, coordinator.Request())
    second = commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    with psycopg.connect(database) as connection:
        connection.execute("update version set number = 2")
    gate.check(federation)
    worker = workers.start("old", pool="solo")
    wait_for_workers(federation, 1)
    store = federation.store()
    child = subprocess.Popen([sys.executable, "-c", _STOPPED_CLOSING], cwd=federation.vault.root.parent,
                             env={**os.environ, **workers.environment, "LYCH_LEASE_S": "1"})
    try:
        wait_until(lambda: _is_stopped(child.pid))
        publish(redis_url, 4)
        wait_until(lambda: lease.read(store) is None, 5)
        assert worker.wait_exit() == 75
        assert workers.start("early", pool="solo", wait=False).wait_exit() == 75  # the journal says `closing`
        assert workers.starts() == []
        child.send_signal(signal.SIGCONT)
        assert child.wait(60) == 4
    finally:
        child.kill()
        child.wait()
    assert journal.read(federation.vault) is None
    workers.start("again", pool="solo")
    wait_until(lambda: len(workers.ends()) == 4)
    assert git(federation_root / "core", "rev-parse", "HEAD") == second
    with psycopg.connect(database) as connection:
        assert connection.execute("select number from version").fetchone() == (2,)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
