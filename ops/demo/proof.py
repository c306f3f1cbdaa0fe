"""Evidence that owes nothing to the product: digests of rows, tree hashes, stamps of tasks."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg

from ops.demo.evolutions import REPOSITORIES

# One statement, so one instant: every row in order, the sequence, the columns.
_DIGESTS = """
select (select md5(string_agg(t::text, e'\n' order by id)) from accounts t),
       (select md5(coalesce(string_agg(t::text, e'\n' order by id), '')) from transfers t),
       (select last_value || ' ' || is_called from transfers_id_seq),
       (select string_agg(attrelid::regclass || '.' || attname || ' ' || atttypid::regtype, ', '
                          order by attrelid::regclass::text, attnum)
          from pg_attribute
         where attrelid in ('accounts'::regclass, 'transfers'::regclass) and attnum > 0 and not attisdropped)
"""
_NAMES = ("accounts", "transfers", "sequence", "columns")


class MismatchError(Exception):
    """A claim of the demo does not hold."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the soul was at one instant between two clock readings (Unix seconds)."""

    after: float
    before: float
    digests: dict[str, str]


class Observer:
    """Reads the soul again and again on a connection of its own, and writes nothing, while the block lasts."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._done = threading.Event()
        self._samples: list[Sample] = []
        self._thread = threading.Thread(target=self._look, name="observer")

    def within(self, frozen_at: float, thawed_at: float) -> list[Sample]:
        """Return the samples taken wholly inside a freeze."""
        return [one for one in self._samples if frozen_at <= one.after and one.before <= thawed_at]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        with psycopg.connect(self._database, autocommit=True, application_name="demo observer") as connection:
            connection.execute("set default_transaction_read_only = on")
            while not self._done.wait(0.003):
                after = time.time()
                found = digests(connection)
                self._samples.append(Sample(after, time.time(), found))


def digests(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return one digest per table, the sequence's state and the columns."""
    row = connection.execute(_DIGESTS).fetchone()
    return dict(zip(_NAMES, row or (), strict=True))


def trees(root: Path) -> dict[str, str]:
    """Return the tree hash of the files on disk per repository, computed without the repository's own index."""
    return {name: _tree(root / name) for name in REPOSITORIES}


def _tree(repository: Path) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ, "GIT_INDEX_FILE": f"{scratch}/index", "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repository / ".git" / "objects"),
        }
        answer = ""
        for arguments in (["add", "-A"], ["write-tree"]):
            done = subprocess.run(
                ["git", "-C", repository, *arguments], check=True, capture_output=True, text=True, env=environment
            )
            answer = done.stdout.strip()
    return answer


def ran_during(stamps: list[dict[str, Any]], frozen_at: float, thawed_at: float) -> list[dict[str, Any]]:
    """Return the tasks whose time overlaps the freeze."""
    return [one for one in stamps if one["began"] < thawed_at and one["ended"] > frozen_at]


def same(what: str, now: Any, then: Any) -> None:
    """Check that two facts are equal.

    Raises:
        MismatchError: they are not; with both.
    """
    if now != then:
        raise MismatchError(f"{what}: is {now!r}, should be {then!r}")
