"""Children of a real prefork pool in which nothing runs, when their worker leaves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import billiard.pool
import pytest
from celery.concurrency.asynpool import AsynPool

from lych_checkpoint.worker import children
from tests.fixtures.client import wait_until


def test_each_child_ends_after_its_own_shutdown_without_a_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    nap = time.sleep
    # billiard's child rests for a second, which a loaded machine would not tell from no rest.
    monkeypatch.setattr(billiard.pool, "time", SimpleNamespace(
        sleep=lambda length_s: nap(120 if length_s == 1 else length_s), monotonic=time.monotonic, time=time.time))

    def shut_down(pid: int, _: object) -> None:
        nap(0.3)
        (tmp_path / str(pid)).touch()

    began_s = time.monotonic()
    pool = AsynPool(processes=2, threads=False, on_process_exit=shut_down)
    processes = list(pool._pool)
    wait_until(lambda: all(process.outq._reader.poll(0) for process in processes))  # they have said that they are up
    for process in processes:
        process.outq._reader.recv()
    pool.close()
    pool._stop_task_handler(pool._task_handler)  # what `join` does first
    heard = threading.Event()
    outer = SimpleNamespace(_pool=pool, on_stop=None)
    thread = children.dismiss(outer, heard.is_set)
    assert thread is not None
    assert outer.on_stop is None  # with a result on its way that is Celery's to do
    wait_until(lambda: len([*tmp_path.iterdir()]) == len(processes) and all(
        process.outq._reader.poll(0) for process in processes))
    assert all(process._is_alive() for process in processes)  # nobody is ended whose results may not be heard yet
    heard.set()
    pool.join()
    thread.join()
    assert time.monotonic() - began_s < 60
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(str(process.pid) for process in processes)


def test_a_pool_in_which_nothing_runs_is_joined_without_celerys_look_at_timers() -> None:
    inner = AsynPool(processes=2, threads=False)
    processes = list(inner._pool)
    wait_until(lambda: all(process.outq._reader.poll(0) for process in processes))
    for process in processes:
        process.outq._reader.recv()
    pool = SimpleNamespace(_pool=inner, on_stop=None)
    thread = children.dismiss(pool, lambda: True)
    assert thread is not None
    assert pool.on_stop is not None
    pool.on_stop()
    thread.join()
    assert not any(process._is_alive() for process in processes)


@pytest.mark.parametrize("pool", [SimpleNamespace(), SimpleNamespace(_pool=None), SimpleNamespace(_pool=object())])
def test_other_pools_are_left_alone(pool: object) -> None:
    assert children.dismiss(pool, lambda: True) is None
