"""`diff`: what comes and goes between two checkpoints, or between one and what is there now."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.federation import commit, git
from tests.fixtures.workers import Lych
from tests.integration.test_create_and_restore import fill


@pytest.fixture
def story(lych: Lych, federation_root: Path, database: str) -> tuple[str, str]:
    """Two checkpoints: the core went on by two commits and a lockfile, alpha back to another line."""
    fill(database)
    alpha, core = federation_root / "extensions/alpha", federation_root / "core"
    commit(alpha, {"README": "two\n"}, "Left behind")
    assert lych("init").code == 0
    ids = [lych("create", "--here", "--json").json["id"]]
    commit(core, {"uv.lock": "one\n"}, "Lock")
    commit(core, {"x": "1"}, "\x1b[2JSubject\x9b31m \u202egnp.exe")
    git(alpha, "reset", "-q", "--hard", "HEAD~1")
    commit(alpha, {"README": "three\n"}, "Another line")
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO public.alembic_version VALUES ('a1')")
    ids.append(lych("create", "--here", "--json").json["id"])
    return ids[0], ids[1]


def test_two_checkpoints(lych: Lych, federation_root: Path, story: tuple[str, str]) -> None:
    told = lych("diff", *story, "--json")
    assert told.code == 0, told.out
    core, alpha, beta = (told.json["repos"][path] for path in ("core", "extensions/alpha", "extensions/beta"))
    assert (core["relation"], core["comes"]["count"], core["goes"]["count"]) == ("ahead", 2, 0)
    assert core["comes"]["named"][1] == [git(federation_root / "core", "rev-parse", "HEAD~1"), "Lock"]
    assert core["lockfiles"] == {"uv.lock": "added"}
    assert alpha["relation"] == "diverged"
    assert [subject for side in ("comes", "goes") for _, subject in alpha[side]["named"]] == [
        "Another line", "Left behind"]
    assert (beta["relation"], beta["comes"]["count"]) == ("aligned", 0)
    assert told.json["environment"] == {"migration alembic public": {"old": "", "new": "a1"}}
    assert told.json["restore"] is None
    back = lych("diff", "latest", "latest~1", "--json").json["repos"]["core"]
    assert (back["relation"], back["goes"], back["lockfiles"]) == ("behind", core["comes"], {"uv.lock": "removed"})
    text = lych("diff", *story).out
    assert "lockfile uv.lock added" in text
    assert "migration alembic public: - becomes a1" in text
    assert r"\x1b[2JSubject\x9b31m \u202egnp.exe" in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert lych("diff", "nobody", "latest").code == 2


def test_now_and_what_a_restore_would_do(lych: Lych, federation_root: Path, story: tuple[str, str]) -> None:
    core, beta = federation_root / "core", federation_root / "extensions/beta"
    for number in range(25):
        commit(core, {"n": str(number)}, f"Number {number}")
    shutil.rmtree(beta)
    told = lych("diff", story[1], "now", "--json")
    assert told.code == 0, told.out
    assert (told.json["old"], told.json["new"]) == (story[1], "now")
    comes = told.json["repos"]["core"]["comes"]
    assert (comes["count"], len(comes["named"]), comes["named"][0][1]) == (25, 20, "Number 24")
    assert told.json["repos"]["extensions/beta"]["relation"] == "missing"
    told_plan, planned = told.json["restore"], lych("restore", story[1], "--dry-run", "--json").json
    del planned["schema"]
    for plan in (told_plan, planned):
        assert plan["safety"].pop("free_bytes") > 0  # the disk is others' too
        assert plan.pop("age_s") >= 0
    assert told_plan == planned
    text = lych("diff", story[1]).out
    assert "and 5 more" in text
    assert "generation" in text


def test_now_says_whether_it_is_dirty(lych: Lych, federation_root: Path, story: tuple[str, str]) -> None:
    core, alpha = federation_root / "core", federation_root / "extensions/alpha"
    assert "now nothing is dirty" in lych("diff").out
    (core / "README").unlink()
    for number in range(30):
        (core / f"\x1b[2J{number:02}").write_text("")
    (alpha / ".git/HEAD").unlink()
    told = lych("diff", "--json").json["dirty"]
    assert (told["core"]["count"], len(told["core"]["named"])) == (31, 20)
    assert "README (deleted)" in told["core"]["named"]
    assert told["extensions/alpha"] is None
    assert told["extensions/beta"] == {"count": 0, "named": [], "size_bytes": 0}
    assert lych("diff", *story, "--json").json["dirty"] == {}
    text = lych("diff").out
    assert "now core is dirty: README (deleted)" in text
    assert "and 11 more" in text
    assert "now extensions/alpha: nobody can know" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_what_history_cannot_say_is_said(
    lych: Lych, federation_root: Path, story: tuple[str, str], tmp_path: Path,
) -> None:
    core, alpha = federation_root / "core", federation_root / "extensions/alpha"
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=1", core.as_uri(), shallow], check=True, capture_output=True)
    shutil.rmtree(core)
    shallow.rename(core)
    shutil.rmtree(alpha)
    told = lych("diff", *story, "--json")
    assert told.code == 0, told.out
    one = told.json["repos"]["core"]
    assert (one["relation"], one["comes"], one["goes"]) == ("unknown", None, None)
    assert "has no commit" in one["why"]
    assert told.json["repos"]["extensions/alpha"]["relation"] == "unknown"
    git(core, "fetch", "-q", "--depth=2")
    commit(core, {"y": "1"}, "On top")
    now = lych("diff", "latest", "now", "--json").json["repos"]["core"]
    assert (now["relation"], now["comes"]["count"]) == ("ahead", 1)
    assert "cut off" in now["why"]
