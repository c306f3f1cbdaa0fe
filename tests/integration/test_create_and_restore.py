"""The whole path: create under load, change everything, restore, compare."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.workers import Lych, Workers

CREATE_FIELDS = {
    "schema", "id", "label", "state", "signature", "driver", "created_at", "workers", "repos", "bytes", "coalesced",
    "frozen_at", "thawed_at", "window",
}


def fill(database: str) -> None:
    """Make tables, a sequence and a large object that a restore must give back."""
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE account (id serial PRIMARY KEY, amount int NOT NULL)")
        connection.execute("CREATE TABLE cold (id int PRIMARY KEY, words text)")
        connection.execute("INSERT INTO account (amount) SELECT 100 FROM generate_series(1, 50)")
        connection.execute("INSERT INTO cold SELECT n, repeat('x', n) FROM generate_series(1, 50) n")
        connection.execute("SELECT lo_from_bytea(4711, 'kept')")


def soul_digest(database: str) -> dict[str, Any]:
    """Digest every table and read every sequence."""
    with psycopg.connect(database) as connection:
        tables = [name for (name,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
        found: dict[str, Any] = {}
        for table in tables:
            query = f'SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM "{table}" t'
            found[table] = connection.execute(query).fetchone()  # type: ignore[call-overload]
        found["sequence"] = connection.execute("SELECT last_value, is_called FROM account_id_seq").fetchone()
        found["object"] = connection.execute("SELECT lo_get(4711)").fetchone()
    return found


def body_digest(root: Path) -> dict[str, str]:
    """Return the tree of every repository, from a fresh index of what is really on disk."""
    found = {}
    for repository in [root / "core", *sorted((root / "extensions").iterdir())]:
        index = repository / ".git" / "digest-index"
        environment = {**os.environ, "GIT_INDEX_FILE": str(index)}
        subprocess.run(["git", "-C", repository, "add", "-A"], check=True, env=environment)
        found[repository.name] = subprocess.run(
            ["git", "-C", repository, "write-tree"], check=True, env=environment, capture_output=True, text=True,
        ).stdout.strip()
        index.unlink()
    return found


def change_everything(root: Path, database: str) -> None:
    """Commit in two repositories and change schema, rows and sequence."""
    commit(root / "core", {"core/__init__.py": "VERSION = 2\n", "new.py": "NEW = 1\n"})
    commit(root / "extensions" / "alpha", {"alpha/__init__.py": "VERSION = 2\n"})
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE account ADD COLUMN version int DEFAULT 2")
        connection.execute("UPDATE account SET amount = amount + 1")
        connection.execute("INSERT INTO account (amount) SELECT 1 FROM generate_series(1, 30)")
        connection.execute("TRUNCATE cold")
        connection.execute("CREATE TABLE future (id int)")
        connection.execute("SELECT lo_put(4711, 0, 'gone')")


def test_restore_gives_back_what_the_freeze_saw(
    lych: Lych, workers: Workers, federation_root: Path, database: str, redis_url: str
) -> None:
    fill(database)
    assert lych("init").code == 0
    one = workers.start("one")
    publish(redis_url, 20)
    created = lych("create", "--json")
    assert created.code == 0, created.err
    document = created.json
    assert set(document) >= CREATE_FIELDS
    assert document["state"] == "sealed"
    assert document["schema"] == 1
    assert set(document["window"]) == {"hold_ms", "ack_ms", "drain_ms", "capture_ms", "thaw_ms"}
    assert document["repos"] == {
        path: git(federation_root / path, "rev-parse", "HEAD")
        for path in ("core", "extensions/alpha", "extensions/beta")
    }
    soul, body = soul_digest(database), body_digest(federation_root)
    change_everything(federation_root, database)
    assert soul_digest(database) != soul
    verified = lych("verify", "latest", "--json")
    assert verified.code == 0, verified.out
    restored = lych("restore", "latest", "--yes", "--json")
    assert restored.code == 0, restored.out + restored.err
    assert soul_digest(database) == soul
    assert body_digest(federation_root) == body
    wait_until(lambda: one.exit_code is not None)
    assert one.exit_code == 75
    assert lych("gate", "--json").json["verdict"] == "aligned"
    workers.start("reborn", environment={"LYCH_QUEUE_POLICY": "keep"})  # `publish` has no plugin
    publish(redis_url, 5, first=500)
    wait_until(lambda: any(record["tag"] == 504 for record in workers.ends()))
    # A second, different evolution after the restore boots, and can be sealed.
    commit(federation_root / "extensions" / "beta", {"beta/__init__.py": "VERSION = 3\n"})
    workers.start("evolved", pool="solo")
    assert lych("gate", "--json").json.items() >= {"verdict": "aligned",
                                                   "generation": restored.json["generation"] + 1}.items()
    safety = [one["id"] for one in lych("list", "--json").json["checkpoints"] if one.get("safety")]
    assert safety == [restored.json["safety"]]
    assert lych("show", "latest", "--json").json["id"] == document["id"]


def test_deleted_repository_comes_back_from_its_bundle(
    lych: Lych, federation_root: Path, database: str
) -> None:
    fill(database)
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    soul, body = soul_digest(database), body_digest(federation_root)
    shutil.rmtree(federation_root / "extensions" / "beta")
    assert lych("gate").code == 78
    restored = lych("restore", "latest", "--yes", "--json")
    assert restored.code == 0, restored.out
    assert (soul_digest(database), body_digest(federation_root)) == (soul, body)


def test_safety_checkpoint_brings_the_displaced_pair_back(
    lych: Lych, federation_root: Path, database: str
) -> None:
    fill(database)
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    change_everything(federation_root, database)
    (federation_root / "core" / "dirty.txt").write_text("not committed\n")
    soul, body = soul_digest(database), body_digest(federation_root)
    restored = lych("restore", "latest", "--yes", "--json")
    assert restored.code == 0, restored.out
    assert soul_digest(database) != soul
    back = lych("restore", restored.json["safety"], "--yes", "--json")
    assert back.code == 0, back.out
    assert (soul_digest(database), body_digest(federation_root)) == (soul, body)


@pytest.mark.parametrize("moment", ["staging", "closing", "switching", "done"])
def test_killed_restore_recovers_to_a_whole_pair(
    moment: str, lych: Lych, lych_environment: dict[str, str], federation_root: Path, database: str, tmp_path: Path
) -> None:
    fill(database)
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    old = (soul_digest(database), body_digest(federation_root))
    change_everything(federation_root, database)
    new = (soul_digest(database), body_digest(federation_root))
    restoring = subprocess.Popen(
        [sys.executable, "-m", "lych_checkpoint", "restore", "latest", "--yes"], cwd=tmp_path,
        env={**os.environ, **lych_environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal = tmp_path / "vault" / "journal.json"
    end_s = time.monotonic() + 30
    seen = ""
    while time.monotonic() < end_s and restoring.poll() is None:
        try:
            seen = json.loads(journal.read_bytes())["phase"]
        except (OSError, ValueError):
            continue
        if seen == moment:
            break
    os.killpg(restoring.pid, signal.SIGKILL)
    restoring.wait()
    assert seen == moment
    open_gate = lych("gate", "--json")
    assert open_gate.code in (0, 75), open_gate.out
    assert open_gate.code == 75 or moment in ("staging", "done")
    assert lych("create", "--here").code in (6, 0)
    recovered = lych("recover", "--json", timeout_s=60)
    assert recovered.code == 0, recovered.out + recovered.err
    now = (soul_digest(database), body_digest(federation_root))
    assert now == (new if moment in ("staging", "closing") else old)
    assert lych("gate").code == 0
    assert lych("recover", "--json").json["recovered"] is None
    assert lych("create", "--here").code == 0


def test_damaged_checkpoint_is_not_restored(lych: Lych, federation_root: Path, database: str, tmp_path: Path) -> None:
    fill(database)
    assert lych("init").code == 0
    checkpoint = lych("create", "--here", "--json").json["id"]
    before = (soul_digest(database), body_digest(federation_root))
    folder = tmp_path / "vault" / "checkpoints" / checkpoint
    victim = next((folder / "body").iterdir())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    answer = lych("verify", "latest", "--json")
    assert answer.code == 3
    assert victim.name in answer.json["error"]["what"]
    assert lych("restore", "latest", "--yes").code == 3
    assert (soul_digest(database), body_digest(federation_root)) == before


def test_plan_changes_nothing(lych: Lych, federation_root: Path, database: str) -> None:
    fill(database)
    assert lych("init").code == 0
    sealed = lych("create", "--here", "--json").json
    change_everything(federation_root, database)
    before = (soul_digest(database), body_digest(federation_root), lych("list", "--json").json)
    plan = lych("restore", "latest", "--dry-run", "--json")
    assert plan.code == 0
    core = plan.json["repos"]["core"]
    assert (core["from"], core["to"]) == (git(federation_root / "core", "rev-parse", "HEAD"), sealed["repos"]["core"])
    assert lych("restore", "latest").code == 2  # no terminal to ask on
    assert (soul_digest(database), body_digest(federation_root), lych("list", "--json").json) == before
