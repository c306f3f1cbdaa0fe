"""Freeze and thaw by hand: who may end what, who is refused, who is forgotten."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from celery import Celery

from lych_checkpoint import coordinator, journal, status
from lych_checkpoint.errors import FreezeError, Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import lease, roster
from tests.fixtures.client import wait_until
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.workers import Lych, Workers

Open = Callable[..., Federation]


def test_running_creates_freeze_is_thawed_by_force_alone_and_a_restores_never(
    opened: Open, workers: Workers, client: Celery
) -> None:
    federation = opened()
    workers.start("busy")
    wait_for_workers(federation, 1)
    client.send_task("nap", args=[4], kwargs={"tag": "long"})
    wait_until(workers.starts)
    with ThreadPoolExecutor() as pool:
        creating = pool.submit(coordinator.create, opened(), coordinator.Request())
        wait_until(lambda: status.status(federation)["state"] == "draining")
        with pytest.raises(Refused) as refused:
            status.thaw(federation)
        assert refused.value.code == "freeze-owned"
        assert status.status(federation)["state"] == "draining"
        assert status.thaw(federation, force=True)["state"] == "thawed"
        with pytest.raises(FreezeError) as broken:
            creating.result(20)
        assert broken.value.code == "freeze-broken"
    assert list(federation.vault.root.glob("checkpoints/*/seal")) == []
    journal.begin(federation.vault, checkpoint="one", ticket="two", generation=2, epoch=1)
    for phase in ("closing", "switching"):
        journal.advance(federation.vault, phase)
        with pytest.raises(RestoreOpen) as begun:
            status.thaw(federation, force=True)
        assert begun.value.exit_code == 6


def test_worker_without_the_plugin_refuses_maintenance_by_name(
    opened: Open, workers: Workers, client: Celery
) -> None:
    federation = opened()
    workers.start("one")
    workers.start("bare", app="tests.fixtures.apps.bare")
    wait_for_workers(federation, 1)
    with pytest.raises(Refused, match="bare@local answers ping and is not in the roster"):
        status.hold(federation, 60, "a test", client)
    assert lease.read(federation.store()) is None


def test_silent_worker_of_another_host_is_forgotten_by_word(opened: Open, lych: Lych, workers: Workers) -> None:
    federation = opened()
    worker = workers.start("here")
    wait_for_workers(federation, 1)
    store = federation.store()
    here = next(iter(roster.entries(store).values()))
    elsewhere = replace(here, name="there@elsewhere", boot="f" * 32,
                        identity=replace(here.identity, machine="another", installation="another"))
    roster.beat(store, elsewhere)
    with pytest.raises(Refused, match=r"heard 0\.\d s ago"):
        status.forget(federation, elsewhere.name)
    worker.send(signal.SIGSTOP)
    try:
        time.sleep(roster.LICENCE_S + 0.2)
        with pytest.raises(Refused, match="lives on this host"):
            status.forget(federation, here.name)
    finally:
        worker.send(signal.SIGCONT)
    with pytest.raises(Refused, match="not in the roster"):
        status.forget(federation, "nobody@nowhere")
    with pytest.raises(FreezeError, match="there@elsewhere did not ack"):
        status.hold(opened(LYCH_ACK_TIMEOUT_S="1"), 60, "a test")
    said = lych("thaw", "--forget", elsewhere.name, "--json")
    assert said.code == 0, said.err
    assert [one["name"] for one in said.json["workers"]] == ["here@local"]
    assert status.hold(federation, 60, "a test")["state"] == "frozen"
    text = lych("status").out
    assert "a test" in text
    assert time.strftime("since %Y-%m-%d ") in text
    roster.beat(store, elsewhere)  # it lived after all
    assert elsewhere.boot in roster.entries(store)


def test_exempt_and_parked_tasks_do_not_make_a_worker_look_busy(
    opened: Open, workers: Workers, client: Celery
) -> None:
    federation = opened()
    workers.start("one", app="tests.fixtures.apps.ways_out")
    wait_for_workers(federation, 1)
    client.send_task("exempt_nap", args=[8], kwargs={"tag": "exempt"})
    client.send_task("walk", args=["parks", 4])
    wait_until(workers.starts)
    wait_until(lambda: sum(entry.in_flight for entry in roster.entries(federation.store()).values()) == 2)
    status.hold(federation, 60, "a test")
    wait_until(lambda: [(one["state"], one["in_flight"], one["parked"])
                        for one in status.status(federation)["workers"]] == [("frozen", 2, 1)], 5)
    status.thaw(federation)
