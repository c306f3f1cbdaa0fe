"""The soul's side of the window: fence, flush, proof, capture, proof.

Everything is connected and warm before the window opens, so that only what must see the quiet is done in it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from lych_checkpoint import witness
from lych_checkpoint.database import (
    Connection,
    activity,
    connect,
    host_and_name,
    losses,
    patient,
    quiet,
    rows,
    sequences,
    speaking,
)
from lych_checkpoint.database.server import system_identifier
from lych_checkpoint.drivers.base import Driver, copies_files, takes_whole_cluster
from lych_checkpoint.drivers.helped import Helped
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import Sequence, SoulFacts

_MEND = "stop it for the checkpoint, or set LYCH_WRITERS to fence or note"


class Capture:
    """One capture: `begin`, `take` and `end` in the window, `finish` after the thaw."""

    def __init__(
        self, driver: Driver | Helped, writers: Literal["refuse", "fence", "note"], url: str, watch: Connection,
        flush: Connection | None, fence: Connection | None,
    ) -> None:
        self._driver, self._policy, self._url = driver, writers, url
        self._whole = takes_whole_cluster(driver.name)
        self._watch, self._flush, self._fence = watch, flush, fence
        self._ours = {one.info.backend_pid for one in (watch, flush, fence) if one is not None}
        self._began: quiet.Reading | None = None
        self._sequences: tuple[Sequence, ...] = ()
        self._selects: list[str] = []
        self._noted: tuple[str, ...] = ()
        self.activity = activity.read(watch)
        self.finished = False

    @classmethod
    def prepared(
        cls, url: str, driver: Driver | Helped, writers: Literal["refuse", "fence", "note"], stack: ExitStack
    ) -> Capture:
        """Connect, and run each statement once so that the server has it warm. ``stack`` closes the connections."""
        def connected(name: str) -> Connection:
            connection = stack.enter_context(connect(url, name=f"lych-checkpoint {name}"))
            with speaking(connection):
                patient(connection)
            return connection

        watch, flush = connected("watch"), connected("flush") if copies_files(driver.name) else None
        fence = connected("fence") if writers == "fence" else None
        with speaking(watch):
            if takes_whole_cluster(driver.name):
                # Planned here and not in the window: to plan the views of sessions takes longer than to read them.
                # These drivers work beside their server, not through a pooler that knows no plans.
                watch.prepare_threshold = 0
                rows(watch, "SET plan_cache_mode TO force_generic_plan")
            rows(watch, "SET lock_timeout TO '1s'")  # who locks a table, with ``note``, must not hold the freeze
            if flush is not None:
                quiet.flush(flush)
            quiet.look(watch)
            if takes_whole_cluster(driver.name):
                losses.refuse(watch)
            sequences.read(watch)
            return cls(driver, writers, url, watch, flush, fence)

    def begin(self) -> None:
        """Prove that nobody writes, first of all in the window.

        Raises:
            Refused: somebody does (code ``writers``), by pid, user and application; or there is now what the driver
                would lose, made while the tasks of before drained (codes as `losses.refuse`).
        """
        with speaking(self._watch):
            if self._fence is not None:
                quiet.fence(self._fence)
            if self._flush is not None:
                quiet.flush(self._flush)
            reading = quiet.look(self._watch, self._ours, whole=self._whole)
            self._refuse_or_note(reading.writers)
            self._began = reading
            self._refuse_losses()
            self._selects = sequences.selects(self._watch)
            self._sequences = sequences.values(self._watch, self._selects)

    def take(self) -> None:
        """Take the instant."""
        self._driver.capture()

    def end(self) -> None:
        """Prove that nobody wrote since `begin`, and drop the fence.

        Raises:
            Refused: somebody writes now (code ``writers``), or somebody wrote meanwhile who can no longer be named
                (code ``snapshot-moved``): worth another try, for it may have been autovacuum.
        """
        if self._began is None:
            raise RuntimeError("begin was not called")
        with speaking(self._watch):
            reading = quiet.look(self._watch, self._ours, whole=self._whole)
            moved = reading.snapshot != self._began.snapshot
            self._refuse_or_note(reading.writers)
            present = sequences.read(self._watch) if moved else sequences.values(self._watch, self._selects)
            if moved:
                self._moved(f"transactions {self._began.snapshot} became {reading.snapshot}")
                self._refuse_losses()  # noted, not refused: what was written may be among them
            if present != self._sequences:
                odd = sorted({one.name for one in {*present} ^ {*self._sequences}})
                self._refuse_or_note_moved(f"the sequence {odd[0]} moved")
                self._sequences = present
            if self._fence is not None:
                quiet.drop_fence(self._fence)

    def finish(self) -> SoulFacts:
        """Make the capture durable, after the thaw.

        Raises:
            Refused: the driver's capture did not end well; nothing may be sealed.
        """
        if self._began is None:
            raise RuntimeError("begin was not called")
        evidence = self._driver.finish()
        with speaking(self._watch):
            known = witness.read(self._watch)
            facts = SoulFacts(
                driver=self._driver.name, database=self._watch.info.dbname,
                server_version=self._watch.info.server_version,
                system_identifier=system_identifier(self._watch),
                generation=known.generation if known else 0, evidence=evidence, sequences=self._sequences,
                writers=self._noted,
            )
        self.finished = True
        return facts

    def _refuse_losses(self) -> None:
        if self._whole:
            losses.refuse(self._watch)

    def _refuse_or_note(self, writers: tuple[str, ...]) -> None:
        if not writers:
            return
        if self._policy != "note":
            others = f" and {len(writers) - 1} more" if writers[1:] else ""
            raise Refused(f"somebody else writes: {writers[0]}{others}", host_and_name(self._url), _MEND, "writers")
        self._noted = tuple(dict.fromkeys((*self._noted, *writers)))

    def _moved(self, what: str) -> None:
        """Judge transactions that came and went: no server says in which database they were.

        Behind the fence they wrote no table of this one. What no lock holds (large objects, DDL) fell whole before
        or after the one instant that a dump is of; a copy of the cluster holds the other databases too.
        """
        if self._fence is None or self._whole:
            self._refuse_or_note_moved(what)
        else:
            self._noted = (*self._noted, f"behind the fence: {what}")

    def _refuse_or_note_moved(self, what: str) -> None:
        if self._policy != "note":
            where = "" if self._whole else ", in this database or beside it"
            raise Refused(f"somebody wrote during the capture{where}: {what}", host_and_name(self._url), _MEND,
                          "snapshot-moved")
        self._noted = (*self._noted, what)
