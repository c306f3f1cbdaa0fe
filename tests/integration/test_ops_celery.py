"""Worker processes that the other tests stand on, here without the plugin."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ops.servers.celery import CeleryProcess, command
from ops.servers.child import ServerError, is_alive

PLAIN = """
import os
from celery import Celery
app = Celery("plain", broker=os.environ["URL"], backend=os.environ["URL"])
@app.task(name="add")
def add(a, b): return a + b
"""


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> dict[str, str]:
    (tmp_path / "plain.py").write_text(PLAIN)
    return {"PYTHONPATH": str(tmp_path), "URL": redis_url}


def test_a_worker_works_and_leaves_no_child(tmp_path: Path, environment: dict[str, str]) -> None:
    with CeleryProcess.worker("plain", "one", directory=tmp_path, environment=environment) as worker:
        worker.wait_ready()
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        assert len(children) == 2
        sent = command("celery", "-A", "plain", "call", "add", "--args", "[1, 2]", environment=environment)
        assert sent.returncode == 0, sent.stderr
        got = command("celery", "-A", "plain", "result", sent.stdout.strip(), environment=environment)
        assert got.stdout.strip() == "3"
        worker.send(signal.SIGKILL)
        assert worker.wait_exit() == -signal.SIGKILL
    assert not any(is_alive(int(child)) for child in children)


def test_a_worker_that_stops_in_good_order(tmp_path: Path, environment: dict[str, str]) -> None:
    with CeleryProcess.worker("plain", "one", pool="solo", directory=tmp_path, environment=environment) as worker:
        worker.wait_ready()
        assert worker.stop() == 0


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, environment: dict[str, str]) -> None:
    with (
        CeleryProcess.worker("absent", "one", directory=tmp_path, environment=environment) as worker,
        pytest.raises(ServerError, match="absent"),
    ):
        worker.wait_ready()


def test_a_beat_starts(tmp_path: Path, environment: dict[str, str]) -> None:
    with CeleryProcess.beat("plain", directory=tmp_path, environment=environment) as beat:
        assert beat.wait_ready().exit_code is None
