"""What a driver promises. One contract test runs over all of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Flat facts that a driver writes into the manifest or the journal, and gets back later.
Evidence = dict[str, str | int | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a driver works on.

    ``pgdata`` is None where the data directory is unknown; ``pg_bin`` is the directory of the client programs or
    None to find them on PATH; ``control`` is LYCH_POSTGRES_CONTROL; ``owner`` is the vault that copies are for;
    ``jobs`` is LYCH_DUMP_JOBS.
    """

    url: str
    pgdata: Path | None = None
    pg_bin: Path | None = None
    control: str = "pg_ctl"
    owner: str = ""
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a driver cannot work here, and the command or change that makes it so, or what to use in its place."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


def takes_whole_cluster(driver: str) -> bool:
    """Whether that driver captures every database of the server, not the soul's own alone."""
    return driver != "dump"


def copies_files(driver: str) -> bool:
    """Whether that driver copies what is on the disk.

    The others have what the server holds only in memory, too: `dump` by its snapshot, `pitr` by the WAL up to its
    point, which is flushed after the thaw.
    """
    return driver in ("btrfs", "reflink")


class Driver(Protocol):
    """Captures the soul in a freeze and brings it back.

    Capture: ``prepare`` → ``capture`` → ``finish`` → ``keep``, or ``abort`` from any point. Restore: ``plan_stage`` →
    ``stage`` → ``opened`` → ``shut_out`` → ``switch`` → ``let_in`` → ``displaced``. All from ``stage`` on is
    idempotent: after a kill the same call with the same evidence goes on where it was, and ``switch_back`` undoes a
    switch, whole or half, even after ``displaced``.
    """

    name: str

    def probe(self) -> Unfit | None:
        """Return None if this driver can work here, else why not.

        Raises:
            Away: the server cannot be asked.
        """

    def preflight(self) -> list[str]:
        """Refuse what this driver would capture wrongly now; return warnings for the manifest."""

    def prepare(self, checkpoint: str, into: Path) -> None:
        """Do all that can be done before the freeze: connect, CHECKPOINT, flush. ``into`` is the `soul/` folder."""

    def capture(self) -> None:
        """Take the instant. Runs in the window; nobody writes until it returns."""

    def finish(self) -> Evidence:
        """Make the capture durable, after the thaw. Returns what `stage`, `verify` and `discard` need."""

    def keep(self) -> None:
        """Keep the capture for good: its checkpoint is sealed."""

    def abort(self) -> None:
        """Leave nothing behind; safe to call twice, and after any failure."""

    def begun(self) -> dict[str, str]:
        """Return the captures of ``owner`` whose makers died before `keep`, by checkpoint, with their driver."""

    def take_back(self, checkpoint: str, *, sealed: bool) -> None:
        """Remove what such a maker left; of one that is ``sealed`` only what says that it is begun.

        The caller holds the lock of its federation. One that is not this driver's, or whose maker lives, is left.
        """

    def verify(self, evidence: Evidence, folder: Path, *, deep: bool = False) -> list[str]:
        """Return each damage in one sentence; the files' digests were checked by the caller."""

    def plan_stage(self, evidence: Evidence, ticket: str) -> Evidence:
        """Say what `stage` will make, before it does: enough for `discard_stage` after a kill in its middle."""

    def stage(self, evidence: Evidence, folder: Path, ticket: str) -> Evidence:
        """Bring the data back aside, invisible. ``ticket`` names this restore; the result goes into the journal."""

    def opened(self, staged: Evidence) -> AbstractContextManager[str]:
        """Give a connection URL to the staged data, and leave it stopped cleanly afterwards."""

    def shut_out(self) -> None:
        """Keep every other client off the live data, where that can be had without stopping the server."""

    def let_in(self) -> None:
        """Undo `shut_out` for whatever data is live now."""

    def switch(self, staged: Evidence) -> None:
        """Make the staged data live and keep the displaced whole. Durable when it returns."""

    def switch_back(self, staged: Evidence) -> None:
        """Make the displaced data live again; the staged data stays as it was staged."""

    def displaced(self, staged: Evidence) -> Evidence:
        """Return the evidence under which the displaced data can be sealed as a checkpoint of this driver."""

    def discard_stage(self, staged: Evidence) -> None:
        """Remove staged data that was never switched, or was switched back; never what is live or was displaced."""

    def discard(self, evidence: Evidence) -> None:
        """Remove what a checkpoint keeps outside its own directory."""

    def standing(self) -> list[str]:
        """Return what is odd about the live server's place, each in one sentence."""
