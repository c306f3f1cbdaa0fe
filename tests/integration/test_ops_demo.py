"""The demo's evidence: each proof must be able to fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from ops.bench.__main__ import main as bench
from ops.bench.record import Row
from ops.demo import evolutions, proof
from ops.demo.proof import MismatchError, Observer, same
from tests.fixtures.federation import git, make_repository


@pytest.fixture
def soul(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute(evolutions.SCHEMA.encode())
    return database


@pytest.mark.parametrize("change", [
    "update accounts set balance = balance + 1 where id = 7",
    "insert into transfers (source, target, coins, version) values (1, 2, 3, 'x')",
    "select nextval('transfers_id_seq')",
    "alter table transfers add column mood text",
])
def test_digests_see_every_change(soul: str, change: str) -> None:
    with psycopg.connect(soul) as connection:
        before = proof.digests(connection)
        assert proof.digests(connection) == before
        connection.execute(change.encode())
        after = proof.digests(connection)
    assert after != before
    with pytest.raises(MismatchError, match="the soul"):
        same("the soul", after, before)


def test_trees_see_what_is_on_disk(tmp_path: Path) -> None:
    for name in evolutions.REPOSITORIES:
        make_repository(tmp_path / name, {"code.py": "VERSION = 1\n"})
    before = proof.trees(tmp_path)
    for name, tree in before.items():
        assert tree == git(tmp_path / name, "rev-parse", "HEAD^{tree}")
    objects = git(tmp_path / "core", "count-objects")
    (tmp_path / "core" / "code.py").write_text("VERSION = 2\n")
    after = proof.trees(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"core"}
    assert git(tmp_path / "core", "count-objects") == objects
    assert git(tmp_path / "core", "status", "--porcelain") == "M code.py"


def test_a_task_that_touches_a_freeze_is_found() -> None:
    def stamp(began: float, ended: float) -> dict[str, float]:
        return {"began": began, "ended": ended}

    quiet = [stamp(1, 2), stamp(5, 6)]
    loud = [stamp(1, 3.5), stamp(3.5, 6), stamp(3.2, 3.3), stamp(1, 9)]
    assert proof.ran_during([*quiet, *loud], 3, 4) == loud


def test_the_observer_takes_samples_inside_a_span(soul: str) -> None:
    with Observer(soul) as observer:
        time.sleep(0.2)
        began = time.time()
        time.sleep(0.3)
        ended = time.time()
        time.sleep(0.1)
    inside = observer.within(began, ended)
    assert inside
    assert all(began <= one.after <= one.before <= ended for one in inside)
    assert observer.within(ended + 10, ended + 11) == []


@pytest.mark.parametrize("evolution", [evolutions.first(), evolutions.second()], ids=["first", "second"])
def test_an_evolution_changes_code_in_two_repositories_and_the_schema(
    soul: str, evolution: evolutions.Evolution
) -> None:
    assert len({path.rpartition("/")[0] for path in evolution.files}) == 2
    for path, text in evolution.files.items():
        assert text != (evolutions.BODY / path).read_text()
    scope: dict[str, object] = {}
    exec(evolution.files[f"extensions/{evolution.organ}/{evolution.organ}.py"], scope)
    with psycopg.connect(soul) as connection:
        for statement in evolution.statements:
            connection.execute(statement.encode())
        for _ in range(5):
            scope["move"](connection, evolution.mark)  # type: ignore[operator]
        assert connection.execute("select sum(balance) from accounts").fetchone() == (101_000,)
        query = f"select count({evolution.column}) from transfers where version = '{evolution.mark}'"
        assert connection.execute(query.encode()).fetchone() == (5,)


def test_percentiles() -> None:
    row = Row("x", "", tuple(float(n) for n in range(1, 101)))
    assert (row.p50_ms, row.p95_ms) == (50.5, 95.0)
    assert Row("x", "", (3.0,)).p95_ms == 3.0


def test_bench_names_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["nonsense"]) == 2
    assert "freeze" in capsys.readouterr().err


def test_make_help_names_each_target() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "-s", "help"], check=True, capture_output=True, text=True, cwd=root)
    targets = next(line for line in (root / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert [line.split()[0] for line in done.stdout.splitlines()] == targets.split()[1:]


def test_an_interrupted_demo_leaves_nothing(server_directory: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "ops.demo"], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "LYCH_DEMO_DIR": str(server_directory)},
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "accounts" in line:
            break
    home = next(server_directory.iterdir())
    time.sleep(1.5)  # in the midst of `init` or of the workers' start
    demo.send_signal(signal.SIGTERM)
    rest = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(30) == 130, rest
    assert "interrupted" in rest
    assert not home.exists()
    mark = str(home).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert mark not in (process / "environ").read_bytes(), process
        except OSError:
            continue
