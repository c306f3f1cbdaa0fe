"""Rebirth: real workers that find their body behind, missing or unbuilt, and a rebuild that does what it likes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lych_checkpoint import coordinator, gate, witness
from lych_checkpoint.database import connect
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock
from ops.servers.celery import CeleryProcess
from ops.servers.child import is_alive
from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.workers import RECORDING, Lych, Workers

Rebuild = Callable[..., dict[str, str]]
Runs = Callable[[], list[int]]
Opened = Callable[..., Federation]


@pytest.fixture
def rebuild(tmp_path: Path) -> Rebuild:
    """Write the rebuild program, which notes each run in `runs`, and return the settings that name it."""

    def written(then: str = "", **more: str) -> dict[str, str]:
        script = tmp_path / "rebuild.py"
        note = f"with open({str(tmp_path / 'runs')!r}, 'a') as file: print(os.getpid(), file=file)\n"
        script.write_text("import os, sys, time\n" + note + then)
        return {"LYCH_REBIRTH": "auto", "LYCH_REBUILD": json.dumps([sys.executable, str(script)]), **more}

    return written


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Return the pids of all runs of the rebuild so far."""
    return lambda: [int(line) for line in (tmp_path / "runs").read_text().split()] \
        if (tmp_path / "runs").exists() else []


def fall_behind(federation: Federation, root: Path) -> str:
    """Let the soul know a second version of the core, and check the first one out again; return the second."""
    gate.check(federation)
    wanted = commit(root / "core", {"core/__init__.py": "VERSION = 2\n"})
    gate.check(federation)
    git(root / "core", "checkout", "-q", "HEAD~1")
    return wanted


def supervise(workers: Workers, environment: dict[str, str]) -> tuple[list[int], CeleryProcess]:
    """Start a worker as a supervisor does: again on 75, never on 78. Return its exit codes, and the last one."""
    codes: list[int] = []
    while len(codes) < 8:
        worker = workers.start("one", wait=False, environment=environment, pool="solo")
        wait_until(lambda worker=worker: worker.exit_code is not None or "ready." in worker.text, 60)  # type: ignore[misc]
        if worker.exit_code is None:
            return codes, worker
        codes.append(worker.exit_code)
        if worker.exit_code != 75:
            return codes, worker
    raise AssertionError(f"the supervisor restarts for ever: {codes}")


def test_a_body_that_is_behind_is_checked_out_rebuilt_and_started_in_place(
    opened: Opened, workers: Workers, federation_root: Path, redis_url: str, rebuild: Rebuild, runs: Runs,
) -> None:
    wanted = fall_behind(opened(), federation_root)
    huge = "print('the first')\nfor _ in range(40): print('x' * 1_000_000)\nprint('the last')\n"
    workers.start("one", environment=rebuild(huge))
    assert git(federation_root / "core", "rev-parse", "HEAD") == wanted
    assert git(federation_root / "core", "status", "--porcelain") == ""
    assert (federation_root / "core" / "core" / "__init__.py").read_text() == "VERSION = 2\n"
    assert len(runs()) == 1
    assert git(federation_root / "core", "for-each-ref", "refs/lych/safety", "refs/lych/staged") == ""
    publish(redis_url, 1)
    wait_until(lambda: bool(workers.ends()))
    kept = (federation_root / ".lych-stage" / "rebirth" / "output.log").read_bytes()
    assert 1_000_000 < len(kept) < 1_300_000
    assert kept.startswith(b"the first\n")
    assert kept.endswith(b"the last\n")
    assert b"bytes left out]" in kept


def test_a_missing_repository_comes_back_from_a_bundle(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    federation = opened()
    gate.check(federation)
    beta = federation_root / "extensions" / "beta"
    shutil.copytree(beta, federation_root.parent / "copy")
    shutil.rmtree(beta)
    assert supervise(workers, rebuild())[0] == [78]  # no checkpoint has it
    shutil.move(federation_root.parent / "copy", beta)
    head = git(beta, "rev-parse", "HEAD")
    coordinator.create(federation, coordinator.Request())
    shutil.rmtree(beta)
    (federation_root / "extensions" / "alpha" / "loose").write_text("mine\n")
    assert supervise(workers, rebuild())[0] == []
    assert git(beta, "rev-parse", "HEAD") == head
    assert (beta / "README").read_text() == "beta\n"
    assert (federation_root / "extensions" / "alpha" / "loose").read_text() == "mine\n"
    assert len(runs()) == 1


def test_workers_of_one_host_rebuild_once(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    environment = rebuild("time.sleep(2)\n")
    started = [workers.start(f"w{number}", wait=False, environment=environment, pool="solo")
               for number in range(2)]
    for worker in started:
        worker.wait_ready(60)
    assert len(runs()) == 1


def test_a_rebuild_that_fails_stops_with_a_record_that_a_person_clears(
    lych: Lych, opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    wanted = fall_behind(opened(), federation_root)
    codes, worker = supervise(workers, rebuild("print('no such dependency'); sys.exit(3)\n"))
    assert codes == [75, 75, 78]
    assert len(runs()) == 3
    place = federation_root / ".lych-stage" / "rebirth"
    for text in (str(place / "state.json"), "3 tries", "no such dependency", "lych-checkpoint gate --retry"):
        assert text in worker.text
    assert "Traceback" not in worker.text
    assert (place / "output.log").read_text() == "no such dependency\n"
    record = json.loads((place / "state.json").read_text())
    assert (record["tries"], "no such dependency" in record["why"]) == (3, True)
    assert supervise(workers, rebuild())[0] == [78]  # it stays so, whatever was mended
    assert len(runs()) == 3
    assert lych("gate", "--retry").code == 0
    assert supervise(workers, rebuild())[0] == []
    assert len(runs()) == 4
    assert git(federation_root / "core", "rev-parse", "HEAD") == wanted


def test_a_rebuild_that_hangs_is_killed_with_all_it_started(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    then = "os.fork()\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(600)\n"
    hanging = rebuild(then, LYCH_REBUILD_TIMEOUT_S="1.5")
    worker = workers.start("one", wait=False, environment=hanging, pool="solo")
    assert worker.wait_exit(60) == 75
    assert "did not end within 1.5 s" in worker.text
    both = [int(line) for line in (federation_root / ".lych-stage/rebirth/output.log").read_text().split()]
    assert len(both) == 2
    wait_until(lambda: not any(map(is_alive, both)))


def test_a_worker_killed_in_the_rebuild_leaves_no_second_one_beside_the_next(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    worker = workers.start("one", wait=False, environment=rebuild("time.sleep(600)\n"), pool="solo")
    wait_until(lambda: bool(runs()), 60)
    wait_until(lambda: json.loads(
        (federation_root / ".lych-stage/rebirth/state.json").read_text())["running"] != {})
    worker.send(signal.SIGKILL)
    worker.wait_exit()
    assert is_alive(runs()[0])
    gate.check(opened())  # the checkout was done; only a worker asks for the rebuild
    assert supervise(workers, rebuild())[0] == []
    assert not is_alive(runs()[0])
    assert len(runs()) == 2


def test_a_checkout_that_was_killed_is_finished(
    opened: Opened, lych_environment: dict[str, str], workers: Workers, federation_root: Path,
    rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    git(federation_root / "core", "checkout", "-q", "-")
    wanted = commit(federation_root / "extensions" / "alpha", {"alpha/__init__.py": "VERSION = 2\n", "new": "1\n"})
    gate.check(opened())
    for path in ("core", "extensions/alpha"):
        git(federation_root / path, "checkout", "-q", "HEAD~1")
    dying = (
        "import os, signal, itertools\n"
        "from lych_checkpoint import rebirth\n"
        "from lych_checkpoint.body import switching\n"
        "from lych_checkpoint.federation import Federation\n"
        "from lych_checkpoint.settings import Settings\n"
        "count, bring = itertools.count(), switching._bring\n"
        "def die(turn, pin):\n"
        "    next(count) < 1 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "    bring(turn, pin)\n"
        "switching._bring = die\n"
        "rebirth.pass_gate(Federation(Settings.load()), None)\n"
    )
    settings = rebuild()
    done = subprocess.run([sys.executable, "-c", dying], env={**os.environ, **lych_environment, **settings},
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert supervise(workers, settings)[0] == []
    assert git(federation_root / "extensions" / "alpha", "rev-parse", "HEAD") == wanted
    for path in ("core", "extensions/alpha"):
        assert git(federation_root / path, "status", "--porcelain") == ""
    assert len(runs()) == 1


def test_an_upgrade_with_another_lockfile_is_rebuilt_once_and_only_then_imprinted(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    federation = opened()
    before = gate.check(federation).generation
    commit(federation_root / "core", {"uv.lock": "one = 1\n"})
    failing = workers.start("one", wait=False, environment=rebuild("sys.exit(1)\n"), pool="solo")
    assert failing.wait_exit(60) == 75
    with connect(federation.settings.need("database_url")) as connection:
        known = witness.read(connection)
    assert known is not None
    assert known.generation == before
    codes, worker = supervise(workers, rebuild())
    assert (codes, len(runs())) == ([], 2)
    coordinator.create(federation, coordinator.Request())
    lock = BodyLock.loads((federation_root / "lychd.lock").read_text())
    assert lock.environment.rebuilt == lock.commits
    assert gate.check(federation) == replace(gate.check(federation), verdict="aligned", generation=before + 1)
    worker.stop()
    commit(federation_root / "core", {"README": "another text\n"})
    assert (supervise(workers, rebuild())[0], len(runs())) == ([], 2)


def test_nothing_is_checked_out_over_uncommitted_work(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    (federation_root / "core" / "README").write_text("an idea\n")
    head = git(federation_root / "core", "rev-parse", "HEAD")
    codes, worker = supervise(workers, rebuild())
    assert codes == [78]
    assert "core: is dirty" in worker.text
    assert git(federation_root / "core", "rev-parse", "HEAD") == head
    assert (federation_root / "core" / "README").read_text() == "an idea\n"
    assert git(federation_root / "core", "for-each-ref", "refs/lych/safety", "refs/lych/staged") == ""
    assert runs() == []


def test_what_diverged_is_refused_even_then(
    opened: Opened, workers: Workers, federation_root: Path, rebuild: Rebuild, runs: Runs,
) -> None:
    fall_behind(opened(), federation_root)
    commit(federation_root / "core", {"other": "history\n"})
    codes, worker = supervise(workers, rebuild())
    assert codes == [78]
    assert "diverged" in worker.text
    assert runs() == []


@pytest.fixture
def multi(tmp_path: Path, lych_environment: dict[str, str]) -> Iterator[Callable[[dict[str, str]], Path]]:
    """Start a worker by `celery multi` and return its log; ended with the test."""
    pidfile, log = tmp_path / "multi.pid", tmp_path / "multi.log"

    def start(settings: dict[str, str]) -> Path:
        subprocess.run(
            [sys.executable, "-m", "celery", "multi", "start", "one@local", "-A", RECORDING, f"--pidfile={pidfile}",
             f"--logfile={log}", "-l", "INFO", "-c", "1"],
            env={**os.environ, **lych_environment, **settings}, check=True, capture_output=True, timeout=60)
        return log

    yield start
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int(pidfile.read_text())
        os.kill(pid, signal.SIGTERM)
        end_s = time.monotonic() + 20
        while is_alive(pid) and time.monotonic() < end_s:
            time.sleep(0.05)


def test_under_celery_multi_the_detached_worker_is_born_again_in_place(
    opened: Opened, multi: Callable[[dict[str, str]], Path], federation_root: Path, tmp_path: Path, rebuild: Rebuild,
    runs: Runs,
) -> None:
    wanted = fall_behind(opened(), federation_root)
    log = multi(rebuild("time.sleep(1)\n"))
    wait_until(lambda: log.exists() and "ready." in log.read_text(), 60)
    assert git(federation_root / "core", "rev-parse", "HEAD") == wanted
    assert is_alive(int((tmp_path / "multi.pid").read_text()))
    assert len(runs()) == 1


ADOPTING = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what is detached below becomes our child
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
while True:
    try:
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    except ChildProcessError:
        break
"""


def test_under_celery_multi_the_detached_worker_ends_with_78_and_says_why_in_its_log(
    opened: Opened, lych_environment: dict[str, str], federation_root: Path, tmp_path: Path,
) -> None:
    fall_behind(opened(), federation_root)
    log = tmp_path / "multi.log"
    ended = subprocess.run(
        [sys.executable, "-c", ADOPTING, sys.executable, "-m", "celery", "multi", "start", "one@local",
         "-A", RECORDING, f"--pidfile={tmp_path / 'multi.pid'}", f"--logfile={log}", "-l", "INFO", "-c", "1"],
        env={**os.environ, **lych_environment}, check=True, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split()[-1:] == ["78"]
    assert "lych-checkpoint" in log.read_text()
    assert "the body is behind" in log.read_text()
    assert not (tmp_path / "multi.pid").exists()
