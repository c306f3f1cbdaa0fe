"""What is said to a person may hold names that anyone chose."""

from __future__ import annotations

import pytest

from lych_checkpoint.cli import answer
from lych_checkpoint.errors import Refused


def test_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    error = Refused("is \x1b[2Jdirty\rclean", "ext\x1b]0;owned\x07", "rm \x1b[8mx")
    error.add_note("note \x1b[2J")
    assert answer.failed(error, as_json=False) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\r" not in said
    assert len(said.splitlines()) == 3
