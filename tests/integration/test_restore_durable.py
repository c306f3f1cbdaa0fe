"""The order in which a restore makes things durable: a power cut between any two leaves a pair to make whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lych_checkpoint import coordinator, gate, restore
from lych_checkpoint.body import displacing, staging, switching
from lych_checkpoint.drivers import kernel
from lych_checkpoint.federation import Federation
from ops.kills.ground import Ground
from tests.fixtures.durable import Events
from tests.fixtures.federation import commit


def test_each_phase_is_durable_before_its_step_and_each_step_before_the_next_phase(
    opened: Callable[..., Federation], federation_root: Path, tmp_path: Path, events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = opened()
    sealed = coordinator.create(federation, coordinator.Request())["id"]
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    gate.check(federation)
    shutil.rmtree(federation_root / "extensions" / "beta")
    for room in (staging, displacing, switching):
        flush = room.flush
        monkeypatch.setattr(room, "flush", lambda paths, flush=flush, room=room: (
            flush(paths := [*paths]), events.append(("syncfs", room.__name__)), flushed.update({room: paths})))
    (federation_root / "core" / "uncommitted").write_text("work\n")
    flushed: dict[object, list[Path]] = {}
    events.clear()
    safety = restore.restore(federation, sealed)["safety"]

    vault, beta = tmp_path / "vault", federation_root / "extensions" / "beta"
    phases = [number for number, event in enumerate(events) if event == ("replace", str(vault / "journal.json"))]
    for number in phases:
        assert events[number + 1] == ("fsync", str(vault))
        assert events[number - 1][0] == "fsync"
    switching_at, done_at = phases[-2:]
    staged = [number for number, event in enumerate(events) if event == ("syncfs", staging.__name__)]
    switched = events.index(("syncfs", switching.__name__))
    assert staged
    assert staged[-1] < phases[-4]
    displaced = events.index(("syncfs", displacing.__name__))
    area = federation_root / ".lych-stage" / safety
    assert {federation.shadow, federation_root / "core" / ".git" / "objects"} <= {*flushed[displacing]}
    assert phases[-4] < displaced < events.index(("rename", str(area / "facts.json"))) < phases[-3]
    assert events.index(("fsync", str(area)), displaced) < phases[-3]
    assert switching_at < events.index(("rename", str(beta))) < switched < done_at
    ends = [
        events.index(("fsync", str(vault / "lineage")), done_at),
        events.index(("replace", str(federation_root / "lychd.lock"))),
        events.index(("rename", str(vault / "checkpoints" / safety))),
        events.index(("replace", str(vault / "notes" / f"restore-{safety}.json"))),
        events.index(("unlink", str(vault / "journal.json"))),
    ]
    assert [done_at, *ends] == sorted([done_at, *ends])
    assert events[-1] == ("fsync", str(vault))


def test_an_exchange_of_pgdata_is_durable_before_the_body_is_switched(
    btrfs: Path, events: Events, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "exchange", lambda *places, real=kernel.exchange: (
        real(*places), events.append(("exchange", places[0][1]))))
    monkeypatch.setattr(kernel, "sync", lambda descriptor, real=kernel.sync: (
        real(descriptor), events.append(("syncfs", str(Path(f"/proc/self/fd/{descriptor}").readlink())))))
    monkeypatch.setattr(switching, "flush", lambda paths, real=switching.flush: (
        real(paths), events.append(("syncfs", "body"))))
    with monkeypatch.context() as kept, ExitStack() as stack:
        kept.setattr(os, "environ", {**os.environ})
        ground = Ground(btrfs, "btrfs", stack)
        ground.change()
        events.clear()
        ticket = restore.restore(ground.open(), ground.checkpoint)["safety"]
        assert ground.pair() == ground.sealed
    shelf = btrfs / "server" / ".lych-pgdata"
    written = ("replace", str(ground.vault / "journal.json"))
    phases = [number for number, event in enumerate(events) if event == written]
    switching_at, done_at = phases[-2:]
    exchanged = events.index(("exchange", "pgdata"))
    noted = events.index(("rename", f"stage-{ticket}.json"))
    assert events[noted + 1] == ("fsync", str(shelf))  # or after a power cut the displaced would pass for a stage
    assert noted < switching_at < exchanged < done_at
    assert events[exchanged + 1:exchanged + 4] == [
        ("fsync", str(shelf.parent)), ("fsync", str(shelf)), ("syncfs", str(shelf))]
    assert exchanged + 3 < events.index(("syncfs", "body")) < done_at
