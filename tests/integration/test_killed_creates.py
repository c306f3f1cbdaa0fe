"""A create by `dump` that is killed: nothing lies outside the vault, but its pg_dump may run on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psycopg

from lych_checkpoint import inspection, status
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.federation import Federation
from lych_checkpoint.soul import Soul
from tests.fixtures import killed
from tests.fixtures.client import wait_until
from tests.fixtures.federation import git

_RUNNING = """select count(*) from pg_stat_activity
    where datname = current_database() and application_name like 'lych-dump-%'"""


def test_any_step_of_a_dump_may_be_its_last(opened: Callable[..., Federation], database: str) -> None:
    federation = opened(LYCH_DRIVER="dump")
    for step in ("prepare", "capture", "finish", "seal", "publish"):
        assert killed.fork(opened(LYCH_DRIVER="dump"), step) == -signal.SIGKILL
        if step == "capture":
            status.thaw(federation, force=True)
        assert len(federation.vault.ids()) == (step == "publish")
        assert len(list((federation.vault.root / "checkpoints").iterdir())) == 1
    made = create(federation, Request())
    assert federation.vault.ids()[1:] == [made["id"]]
    inspection.verify(federation, federation.vault.ids()[0])
    for member in federation.members():
        pins = git(member.directory, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/lych/checkpoints")
        assert pins.split() == federation.vault.ids()
    with psycopg.connect(database) as connection:
        wait_until(lambda: connection.execute(_RUNNING).fetchone() == (0,))


def test_a_pg_dump_that_outlives_its_create_is_ended(opened: Callable[..., Federation], database: str) -> None:
    federation = opened(LYCH_DRIVER="dump", LYCH_WRITERS="note")
    with psycopg.connect(database) as other, psycopg.connect(database, autocommit=True) as connection:
        other.execute("create table held as select 1 as number")
        other.commit()
        other.execute("lock table held in access exclusive mode")
        child = killed.begin(opened(LYCH_DRIVER="dump", LYCH_WRITERS="note"))
        # It survives from its first row on: until then a snapshot that ended with its exporter makes it fail.
        wait_until(lambda: connection.execute(f"{_RUNNING} and wait_event_type = 'Lock'").fetchone() == (1,))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert connection.execute(_RUNNING).fetchone() == (1,)
        soul = Soul.open(federation.ground(), "dump", "note")
        soul.sweep(federation.vault.ids)
        wait_until(lambda: connection.execute(_RUNNING).fetchone() == (0,))
