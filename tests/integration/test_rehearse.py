"""A rehearsal: both halves beside the live ones, on a real server, and nothing left of it but a note."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from celery import Celery

from lych_checkpoint import coordinator, inspection, rehearsal
from lych_checkpoint.errors import Damage, GateRefused, LockHeld, Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import lock
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until
from tests.fixtures.federation import commit, make_repository
from tests.fixtures.workers import Lych, Workers

Opened = Callable[..., Federation]
CHECK = """
import os, psycopg
with psycopg.connect(os.environ["LYCH_DATABASE_URL"]) as soul:
    count = soul.execute("select count(*) from kept").fetchone()[0]
    print(count, open(os.environ["LYCH_ROOT"] + "/core/README").read().strip(), soul.info.dbname)
"""


@pytest.fixture
def lych_environment(lych_environment: dict[str, str], soul: dict[str, str]) -> dict[str, str]:
    """The test's federation on that server."""
    return {**lych_environment, **soul}


def fill(url: str) -> None:
    """Make the table that the user's own check counts."""
    with psycopg.connect(url) as connection:
        connection.execute("create table kept (id int primary key); insert into kept select generate_series(1, 100)")


def traces(federation: Federation, root: Path) -> list[str]:
    """What a rehearsal left anywhere: databases, snapshots, files, refs."""
    settings = federation.settings
    with psycopg.connect(settings.need("database_url")) as connection:
        found = [str(name) for (name,) in connection.execute(
            "select datname from pg_database where starts_with(datname, current_database() || '__')")]
    if settings.pgdata is not None:
        found += [str(path) for path in settings.pgdata.parent.glob(".lych-*/stage-*")]
    run = federation.vault.root / "run"
    found += [path.name for path in run.iterdir() if path.name.startswith("rehearsal")]
    return found + [str(path) for path in root.glob(".lych-stage")]


@pytest.mark.parametrize("soul", ["dump", "btrfs", "reflink", "pitr"], indirect=True)
def test_a_rehearsal_checks_the_pair_aside_and_leaves_only_a_note(
    opened: Opened, lych: Lych, federation_root: Path, soul: dict[str, str],
) -> None:
    federation = opened()
    fill(soul["LYCH_DATABASE_URL"])
    one = coordinator.create(federation, coordinator.Request())["id"]
    with psycopg.connect(soul["LYCH_DATABASE_URL"]) as connection:
        connection.execute("drop table kept")
    commit(federation_root / "core", {"README": "changed\n"})
    assert federation.vault.rehearsals() == {}
    said = lych("rehearse", "--json", LYCH_REHEARSE=json.dumps([sys.executable, "-c", CHECK]))
    assert said.code == 0, said.out
    assert said.json["checkpoint"] == one
    assert (said.json["ok"], said.json["gate"], said.json["command"]) == (True, "aligned", "passed")
    assert said.json["amcheck"] == "passed"
    output = (federation.vault.root / "notes" / f"rehearsal-{one}.log").read_text().split()
    assert output[:3] == ["100", "the", "core"]
    assert (output[3] == "soul") == (soul["LYCH_DRIVER"] != "dump")  # a server of its own, or a scratch database
    assert traces(federation, federation_root) == []
    assert (federation_root / "core" / "README").read_text() == "changed\n"
    with psycopg.connect(soul["LYCH_DATABASE_URL"]) as connection:
        assert connection.execute("select to_regclass('kept')").fetchone() == (None,)
    listed = lych("list", "--json").json["checkpoints"][0]["rehearsed"]
    assert listed == {"at": said.json["at"], "ok": True, "left_out": []}
    inspection.verify(federation, one)  # the note is no part of what was sealed


@pytest.mark.parametrize("soul", ["dump"], indirect=True)
def test_a_core_that_is_the_root_itself_is_rehearsed_too(
    opened: Opened, lych: Lych, federation_root: Path, database: str,
) -> None:
    make_repository(federation_root / "the whole", {".gitignore": "extensions/\n", "core/README": "the core\n"})
    for path in (federation_root / "core", federation_root / "extensions/beta"):
        shutil.rmtree(path)
    root = federation_root / "the whole"
    (federation_root / "extensions").rename(root / "extensions")
    federation = opened(LYCH_ROOT=str(root), LYCH_CORE=".")
    fill(database)
    coordinator.create(federation, coordinator.Request())
    commit(root, {"core/README": "changed\n"})
    said = lych("rehearse", "--json", LYCH_REHEARSE=json.dumps([sys.executable, "-c", CHECK]), LYCH_ROOT=str(root),
                LYCH_CORE=".")
    assert said.code == 0, said.out
    assert (said.json["ok"], said.json["gate"], said.json["command"]) == (True, "aligned", "passed")
    output = (federation.vault.root / "notes" / f"rehearsal-{said.json['checkpoint']}.log").read_text().split()
    assert output[:3] == ["100", "the", "core"]
    assert traces(federation, root) == []
    assert (root / "core/README").read_text() == "changed\n"


@pytest.mark.parametrize("soul", ["dump"], indirect=True)
def test_a_rehearsal_that_fails_says_so_in_the_list_and_leaves_nothing(
    opened: Opened, lych: Lych, federation_root: Path, database: str,
) -> None:
    federation = opened(LYCH_REHEARSE=json.dumps([sys.executable, "-c", "print('bad'); raise SystemExit(4)"]))
    fill(database)
    one = coordinator.create(federation, coordinator.Request())["id"]
    with pytest.raises(Refused, match="failed with 4: bad"):
        rehearsal.rehearse(federation, one)
    assert federation.vault.rehearsals()[one]["ok"] is False
    assert "failed" in lych("list").out
    with pytest.raises(GateRefused, match="missing"):
        rehearsal.rehearse(opened(LYCH_EXTENSIONS='["none"]'), one)
    assert traces(federation, federation_root) == []
    with lock.held(federation.store(), "create"), pytest.raises(LockHeld):
        rehearsal.rehearse(federation, one)
    victim = next((federation.vault.path(one) / "soul").rglob("*.dat*"), None) or \
        next(path for path in (federation.vault.path(one) / "soul").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(Damage):
        rehearsal.rehearse(federation, one)


@pytest.mark.parametrize("soul", ["dump", "btrfs"], indirect=True)
def test_a_killed_rehearsal_is_swept_by_the_next(
    opened: Opened, federation_root: Path, soul: dict[str, str], tmp_path: Path,
) -> None:
    federation = opened()
    fill(soul["LYCH_DATABASE_URL"])
    coordinator.create(federation, coordinator.Request())
    hang = f"import os, time; open({str(tmp_path / 'hangs')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    killed = subprocess.Popen(
        [sys.executable, "-m", "lych_checkpoint", "rehearse"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "LYCH_REHEARSE": json.dumps([sys.executable, "-c", hang])})
    try:
        wait_until(lambda: (tmp_path / "hangs").exists() and bool((tmp_path / "hangs").read_text()), 60)
        wait_until(lambda: '"running"' in (federation.vault.root / "run" / "rehearsal.json").read_text())
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert traces(federation, federation_root) != []
    assert rehearsal.rehearse(federation, "latest")["ok"] is True
    assert traces(federation, federation_root) == []
    assert not Path(f"/proc/{(tmp_path / 'hangs').read_text()}/cwd").exists()


@pytest.mark.parametrize("soul", ["btrfs"], indirect=True)
def test_a_rehearsal_finds_damage_that_was_sealed_with_the_data(
    opened: Opened, lych: Lych, federation_root: Path, soul: dict[str, str],
) -> None:
    """Every byte is as it was sealed; the index was wrong before. Only whoever reads it in order finds that."""
    federation = opened()
    fill(soul["LYCH_DATABASE_URL"])
    with psycopg.connect(soul["LYCH_DATABASE_URL"]) as connection:
        connection.execute(
            "create operator class turned for type int4 using btree as operator 1 < (int4, int4), "
            "operator 2 <= (int4, int4), operator 3 = (int4, int4), operator 4 >= (int4, int4), "
            "operator 5 > (int4, int4), function 1 btint4cmp(int4, int4); "
            "create function turned(int4, int4) returns int language sql immutable as 'select btint4cmp($2, $1)'; "
            "create index damaged on kept (id turned)")
        connection.execute("update pg_amproc set amproc = 'turned'::regproc where amprocfamily = "
                           "(select oid from pg_opfamily where opfname = 'turned')")
    one = coordinator.create(federation, coordinator.Request())["id"]
    inspection.verify(federation, one)
    said = lych("rehearse", "--json")
    assert (said.code, said.json["error"]["code"]) == (3, "damage"), said.out
    assert "pg_amcheck" in said.json["error"]["what"]
    assert "damaged" in said.json["error"]["what"]
    assert lych("list", "--json").json["checkpoints"][0]["rehearsed"]["ok"] is False
    assert traces(federation, federation_root) == []


@pytest.mark.parametrize("soul", ["dump"], indirect=True)
def test_the_list_says_which_check_a_rehearsal_could_not_run(
    opened: Opened, lych: Lych, database: str, postgres: PostgresNode, tmp_path: Path,
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for path in postgres.pg_bin.iterdir():
        if path.name != "pg_amcheck":
            (programs / path.name).symlink_to(path)
    federation = opened()
    fill(database)
    coordinator.create(federation, coordinator.Request())
    said = lych("rehearse", "--json", LYCH_PG_BIN=str(programs))
    assert said.code == 0, said.out
    assert said.json["amcheck"].startswith("left out")
    assert lych("list", "--json").json["checkpoints"][0]["rehearsed"]["left_out"] == ["amcheck"]
    assert "without amcheck" in lych("list").out


@pytest.mark.parametrize("soul", ["dump"], indirect=True)
def test_a_worker_rehearses_by_task(
    opened: Opened, workers: Workers, client: Celery
) -> None:
    federation = opened()
    one = coordinator.create(federation, coordinator.Request())["id"]
    workers.start("one")
    result = client.send_task("checkpoint.rehearse", args=["latest"])
    said = result.get(timeout=60)
    assert (said["schema"], said["checkpoint"], said["ok"]) == (1, one, True)
