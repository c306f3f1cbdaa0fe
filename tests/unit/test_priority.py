"""Work that may wait runs at a low priority; whoever asked for it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lych_checkpoint.process import unhurried


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_only_what_may_wait_is_slow() -> None:
    before = _nice()
    assert unhurried(_nice) > before
    assert _nice() == before


def test_its_programs_are_slow_too() -> None:
    argv = [sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"]
    said = unhurried(lambda: subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert int(said) > _nice()


def test_its_error_is_ours() -> None:
    with pytest.raises(ZeroDivisionError):
        unhurried(lambda: 1 // 0)
