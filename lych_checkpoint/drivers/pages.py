"""Every page of a copy: a writable copy of it recovers in private, and pg_checksums reads what it leaves."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lych_checkpoint.drivers import kernel
from lych_checkpoint.drivers.base import Driver, Evidence
from lych_checkpoint.drivers.cluster import major_of
from lych_checkpoint.drivers.postmaster import starved
from lych_checkpoint.drivers.programs import need
from lych_checkpoint.drivers.shelf import Shelf
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner, run

_CHECK_S = 24 * 3600
#: With this pg_checksums ends when a page is wrong, or a file cannot be read.
_WRONG = 1
#: What it says, with the same exit code, of a server that died in its shutdown: its last checkpoint found no room.
_NOT_STOPPED = "cluster must be shut down"


def ticket(snapshot: str) -> str:
    """Return the ticket under which the copy ``snapshot`` is checked: what a killed check left is found by it."""
    return f"verify-{snapshot}"


def damages(driver: Driver, shelf: Shelf, evidence: Evidence, folder: Path, pg_bin: Path | None) -> list[str]:
    """Return each damage in one sentence. Who checks the same copy meanwhile is waited for.

    Raises:
        Refused: it could not be looked at, which says nothing of the copy: no room, no memory, no program.
    """
    snapshot = str(evidence["snapshot"])
    with _alone(shelf, snapshot):
        plan = driver.plan_stage(evidence, ticket(snapshot))
        try:
            with driver.opened(driver.stage(evidence, folder, ticket(snapshot))):
                pass  # pg_checksums wants a cluster that was shut down
            run([need("pg_checksums", pg_bin, major_of(shelf.pgdata)), "--check", "-D",
                 shelf.path / str(plan["stage"])], owner=Owner.of(shelf.pgdata), cwd=Path("/"), timeout_s=_CHECK_S)
        except Refused as error:
            if _NOT_STOPPED in error.what:
                raise Refused("the server that recovered a copy to check it did not stop in order",
                              str(shelf.path / snapshot), "make room, then verify again", "server-starved") from error
            checked = error.code == "program-failed" and error.facts.get("exit") == _WRONG and not starved(error.what)
            if not checked and error.code != "server-does-not-start":
                raise
            return [f"{shelf.path / snapshot}: {error.what}"]
        finally:
            driver.discard_stage(plan)
    return []


@contextmanager
def _alone(shelf: Shelf, snapshot: str) -> Iterator[None]:
    with shelf.opened() as top, kernel.directory(snapshot, inside=top) as copy:
        fcntl.flock(copy, fcntl.LOCK_EX)
        yield
