"""What takes long says how far it is, in the log and on a person's terminal, and nowhere else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import progress, restore
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.federation import Federation

_SAYS = """
import time
from lych_checkpoint import progress
from lych_checkpoint.cli import answer
progress.EVERY_S = 0.05
answer.log_to_stderr(debug=False)
with progress.told("pg_dump", lambda: 3_000_000, 7_000_000):
    time.sleep(0.5)
"""


def test_dump_and_restore_say_how_far_they_are(
    opened: Callable[..., Federation], database: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.005)
    caplog.set_level(logging.INFO, progress.__name__)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table big as select md5(n::text) as text from generate_series(1, 200000) as n")
    federation = opened(LYCH_DRIVER="dump")
    made = create(federation, Request())
    restore.restore(federation, made["id"])
    archive = federation.vault.path(made["id"]) / "soul" / "dump.pgc"
    said: dict[str, list[int]] = {}
    for one in caplog.records:
        if getattr(one, "event", "") == "progress":
            said.setdefault(one.getMessage().partition(":")[0], []).append(one.so_far_bytes)
    assert max(said["pg_dump"]) <= archive.stat().st_size == progress.written_bytes(archive)
    assert max(said["pg_dump"]) > 0
    assert max(said["pg_restore"]) > 5_000_000
    assert all(one == sorted(one) for one in said.values())


@pytest.mark.parametrize(("terminal", "says"), [(True, "INFO pg_dump: 3 MB of about 7 MB"), (False, "")])
def test_only_a_terminal_is_told(terminal: bool, says: str) -> None:
    ours, theirs = os.openpty() if terminal else os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", _SAYS], stderr=theirs, stdout=subprocess.PIPE, check=True)
    finally:
        os.close(theirs)
    with open(ours, "rb", buffering=0) as reader:
        text = reader.read(4096) if terminal else reader.read()
    assert done.stdout == b""
    assert text.decode().partition("\r\n")[0] == says


def test_what_cannot_be_told_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    asked = []

    def missing() -> int:
        asked.append(1)
        return progress.written_bytes(tmp_path / "not yet")

    with progress.told("it", missing):
        while len(asked) < 2:
            pass
