"""The gate at a worker's boot, and bad input at every door."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.federation import commit, git
from tests.fixtures.lacking import need_root
from tests.fixtures.workers import Lych, Workers


def test_code_rolled_back_alone_is_refused(lych: Lych, workers: Workers, federation_root: Path) -> None:
    assert lych("init").code == 0
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    assert lych("gate").code == 0
    new = git(federation_root / "core", "rev-parse", "HEAD")
    git(federation_root / "core", "checkout", "-q", "HEAD~1")
    old = git(federation_root / "core", "rev-parse", "HEAD")
    worker = workers.start("one", wait=False)
    assert worker.wait_exit() == 78
    text = worker.text
    assert "core" in text
    assert old[:12] in text
    assert new[:12] in text
    assert "lych-checkpoint" in text
    assert "Traceback" not in text
    answer = lych("gate", "--json")
    assert answer.code == 78
    assert answer.json["error"]["code"] == "gate-behind"
    assert answer.json["verdict"] == "behind"
    assert answer.json["repos"]["core"] == {"verdict": "behind", "disk": old, "witness": new}


def test_data_restored_alone_is_refused(lych: Lych, federation_root: Path, database: str) -> None:
    assert lych("init").code == 0
    assert lych("gate").code == 0
    with psycopg.connect(database) as connection:
        older = connection.execute("SELECT to_jsonb(w) FROM lych.witness w").fetchone()
        assert older is not None
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    assert lych("gate").code == 0
    with psycopg.connect(database) as connection:
        connection.execute("DELETE FROM lych.witness")
        connection.execute(
            "INSERT INTO lych.witness SELECT * FROM jsonb_populate_record(NULL::lych.witness, %s::jsonb)",
            [psycopg.types.json.Jsonb(older[0])])
    answer = lych("gate", "--json")
    assert answer.code == 78
    assert answer.json["error"]["code"] == "gate-rewound"


def test_missing_repository_is_refused(lych: Lych, federation_root: Path) -> None:
    assert lych("init").code == 0
    assert lych("gate").code == 0
    shutil.rmtree(federation_root / "extensions" / "beta")
    answer = lych("gate", "--json")
    assert answer.code == 78
    assert answer.json["error"]["where"] == "extensions/beta"


def test_gate_prints_each_repository(lych: Lych, federation_root: Path) -> None:
    assert lych("init").code == 0
    first = lych("gate", "--json")
    assert first.code == 0, first.out
    document = lych("gate", "--json").json
    assert document["schema"] == 1
    assert document["verdict"] == "aligned"
    head = git(federation_root / "core", "rev-parse", "HEAD")
    assert document["repos"]["core"] == {"verdict": "aligned", "disk": head, "witness": head}


@pytest.mark.parametrize(("setting", "value", "code"), [
    ("LYCH_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", 75),
    ("LYCH_REDIS_URL", "redis://127.0.0.1:1/0", 75),
    ("LYCH_LEASE_S", "soon", 2),
    ("LYCH_NONSENSE", "1", 2),
    ("LYCH_DRIVER", "tape", 2),
    ("LYCH_VAULT", "/proc/nothing/vault", 75),
])
def test_worker_says_what_keeps_it_from_starting(
    setting: str, value: str, code: int, lych: Lych, workers: Workers
) -> None:
    assert lych("init").code == 0
    worker = workers.start("one", wait=False, environment={setting: value})
    assert worker.wait_exit() == code
    assert "Traceback" not in worker.text
    if code == 2:
        assert setting in worker.text
    codes = {}
    for verb in (["create", "--here"], ["gate"], ["status"]):
        answer = lych(*verb, "--json", **{setting: value})
        codes[verb[0]] = answer.code
        if answer.code != 0:
            assert answer.code == code, (verb, answer)
            assert set(answer.json["error"]) == {"code", "what", "where", "mend"}
        assert "Traceback" not in answer.err
    if setting != "LYCH_REDIS_URL":  # the gate reads witness and vault; the worker registers in Redis besides
        assert codes["gate"] == code
    assert codes["create"] == code


@pytest.mark.parametrize("breakage", ["empty", "unborn", "bare", "broken", "dirty"])
def test_unfit_body_is_refused_by_name(breakage: str, lych: Lych, federation_root: Path, tmp_path: Path) -> None:
    assert lych("init").code == 0
    beta = federation_root / "extensions" / "beta"
    environment = {}
    if breakage == "empty":
        (tmp_path / "hollow").mkdir()
        environment["LYCH_ROOT"] = str(tmp_path / "hollow")
    elif breakage == "dirty":
        (beta / "loose").write_text("x")
    elif breakage == "broken":
        (beta / ".git" / "HEAD").write_text("nonsense\n")
    else:
        shutil.rmtree(beta)
        beta.mkdir()
        git(beta, "init", "-q", *(["--bare"] if breakage == "bare" else []))
    answer = lych("create", "--here", "--json", **environment)
    assert answer.code == 1, answer
    if breakage != "empty":
        assert "beta" in answer.json["error"]["where"]
    assert answer.json["error"]["mend"]
    assert "Traceback" not in answer.err
    assert lych("list", "--json").json["checkpoints"] == []
    assert os.listdir(tmp_path / "vault" / "checkpoints") == []


def test_adopted_downgrade_boots_and_stays_in_the_lineage(lych: Lych, federation_root: Path, tmp_path: Path) -> None:
    assert lych("init").code == 0
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    assert lych("gate").code == 0
    git(federation_root / "core", "checkout", "-q", "HEAD~1")
    assert lych("gate").code == 78
    adopted = lych("gate", "--adopt", "version 2 was a mistake", "--json")
    assert adopted.code == 0, adopted.out
    assert lych("gate", "--json").json["verdict"] == "aligned"
    assert "version 2 was a mistake" in (tmp_path / "vault" / "lineage").read_text()


def test_uncommitted_work_is_a_warning_where_it_is_imprinted_and_by_the_verb(
    lych: Lych, workers: Workers, federation_root: Path
) -> None:
    assert lych("init").code == 0
    assert lych("gate", "--json").json["dirty"] == []
    (federation_root / "core" / "loose").write_text("work\n")
    said = lych("gate", "--json")
    assert (said.code, said.json["verdict"], said.json["dirty"]) == (0, "aligned", ["core"])
    assert "uncommitted work in core" in lych("gate").out
    commit(federation_root / "extensions/beta", {"beta/__init__.py": "VERSION = 2\n"})
    worker = workers.start("one", pool="solo")  # no refusal: it is ready
    assert "Uncommitted work in core" in worker.text


@pytest.mark.parametrize(("harm", "code", "slug"), [
    ("read-only", 75, "vault-unwritable"), ("lineage", 78, "lineage-broken"), ("journal", 78, "malformed"),
])
def test_a_vault_that_is_read_only_is_waited_for_and_a_damaged_one_is_a_no(
    harm: str, code: int, slug: str, lych: Lych, workers: Workers, federation_root: Path, tmp_path: Path
) -> None:
    assert lych("init").code == 0
    vault = tmp_path / "vault"
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    with ExitStack() as stack:
        if harm == "read-only":
            need_root()
            stack.enter_context(read_only(vault))
        elif harm == "lineage":
            (vault / "lineage").write_text("nonsense\n" + (vault / "lineage").read_text())
        else:
            (vault / "journal.json").write_text('{"version": 1, "release": "0", "phase": "nonsense"}')
        worker = workers.start("one", pool="solo", wait=False)
        assert worker.wait_exit() == code
        assert "Traceback" not in worker.text
        said = lych("gate", "--json")
        assert (said.code, said.json["error"]["code"]) == (code, slug)
    if harm == "read-only":
        assert lych("gate").code == 0  # it passed by itself


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Mount a directory onto itself, read-only, as a file system does that met an error."""
    for argv in (["mount", "--bind", directory, directory], ["mount", "-o", "remount,bind,ro", directory]):
        subprocess.run(argv, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
