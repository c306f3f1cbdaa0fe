"""One pg_restore into an empty database: the other half of `dumping`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from lych_checkpoint import progress
from lych_checkpoint.database import Connection, connect, extensions, patient, rows, speaking
from lych_checkpoint.database.address import without_password
from lych_checkpoint.database.extensions import Extension
from lych_checkpoint.process import run

#: pg_restore and ANALYZE of a large database take hours, not minutes.
RESTORE_S = 24 * 3600.0


def load(url: str, archive: Path, program: Path, jobs: int, wanted: Collection[Extension],
         size_bytes: Callable[[], int]) -> None:
    """Bring the archive into the empty database that ``url`` names, with the extensions in their versions.

    Args:
        url: of the database.
        archive: file or directory.
        program: pg_restore.
        jobs: of its connections.
        wanted: the extensions, in the order of their making.
        size_bytes: of the database now, for the progress told.

    Raises:
        Refused: an extension cannot be had (code ``extension-missing``), or pg_restore failed.
    """
    address, secret = without_password(url, "lych-checkpoint restore")

    def restore(*how: str | Path) -> None:
        run([program, "--exit-on-error", "--no-password", f"--jobs={jobs}", f"--dbname={address}", *how, archive],
            timeout_s=RESTORE_S, environment=secret)

    with connect(url) as connection, speaking(connection):
        patient(connection)
        extensions.refuse_unavailable(connection, wanted)
        with progress.told("pg_restore", size_bytes):
            if extensions.in_other_versions(connection, wanted):
                _load_in_two(restore, run([program, "--list", archive], timeout_s=RESTORE_S), connection, wanted)
            else:
                restore()
        rows(connection, "ANALYZE")  # or the first queries after the switch are planned blind


def _load_in_two(
    restore: Callable[..., None], contents: str, connection: Connection, wanted: Collection[Extension],
) -> None:
    """Make the extensions between the schemas that they live in and all else: a dump asks for no version."""
    lines = contents.splitlines(keepends=True)
    with tempfile.NamedTemporaryFile("w", prefix="lych-") as schemas, \
            tempfile.NamedTemporaryFile("w", prefix="lych-") as others:
        for line in lines:
            (schemas if _is_schema(line) else others).write(line)
        schemas.flush()
        others.flush()
        restore("--use-list", schemas.name)
        extensions.make(connection, wanted)
        restore("--use-list", others.name)


def _is_schema(line: str) -> bool:
    """Whether a line of the contents list, ``id; catalog oid KIND schema name owner``, makes a schema."""
    return not line.startswith(";") and line.partition(";")[2].split()[2:3] == ["SCHEMA"]
