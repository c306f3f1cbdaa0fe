"""The soul: the data, captured in a freeze and brought back, by whichever driver fits.

What no driver captures exactly travels beside it: sequences go by value. Commits that did not wait for the disk are
flushed before files are copied, and two readings prove that nobody wrote in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lych_checkpoint import drivers, witness
from lych_checkpoint.database import connect, extensions, host_and_name, patient, rights, sequences, speaking
from lych_checkpoint.database.address import without_password
from lych_checkpoint.database.server import describe, system_identifier
from lych_checkpoint.drivers.base import Driver, Evidence, Ground, Unfit, takes_whole_cluster
from lych_checkpoint.drivers.helped import Helped
from lych_checkpoint.drivers.programs import find
from lych_checkpoint.errors import CheckpointError, Damage, Refused
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.process import run
from lych_checkpoint.records import canonical
from lych_checkpoint.vault import write_atomic
from lych_checkpoint.window import Capture

logger = logging.getLogger(__name__)

_AMCHECK_S = 24 * 3600
#: With this pg_amcheck ends when it found damage; with 1 when it could not look.
_AMCHECK_DAMAGE = 2

#: In the checkpoint's `soul/`: how many rows had been written, for the plan of a restore.
ACTIVITY = "activity.json"

Writers = Literal["refuse", "fence", "note"]

__all__ = ["Capture", "Soul"]


class Soul:
    """One database, or the whole cluster with a physical driver, behind one selected driver."""

    def __init__(self, ground: Ground, driver: Driver | Helped, writers: Writers) -> None:
        self.driver = driver
        self._ground = ground
        self._writers = writers

    @classmethod
    def open(cls, ground: Ground, wanted: str, writers: Writers, helper: tuple[str, ...] = ()) -> Soul:
        """Select the driver ``wanted``; ``auto`` takes the first that fits. ``helper`` is LYCH_HELPER.

        Raises:
            Refused: none fits (code ``driver-unavailable``); each driver's reason is in the message.
            Away: the server cannot be reached.
        """
        return cls(ground, drivers.select(ground, wanted, helper), writers)

    @classmethod
    def reopen(cls, ground: Ground, name: str, staged: Evidence, helper: tuple[str, ...] = ()) -> Soul:
        """Take the driver of an open restore without asking the server, which may be stopped."""
        if ground.pgdata is None and staged.get("pgdata"):
            ground = replace(ground, pgdata=Path(str(staged["pgdata"])))
        return cls(ground, drivers.chosen(ground, name, helper), "refuse")

    @staticmethod
    def reports(ground: Ground, helper: tuple[str, ...] = ()) -> list[tuple[str, Unfit | None]]:
        """Return every driver with None if it fits, else why not."""
        return drivers.reports(ground, helper)

    def preflight(self) -> list[str]:
        """Refuse before anyone is frozen what cannot be captured exactly; return warnings for the manifest.

        Raises:
            Refused: by reason, such as ``prepared-transactions``, ``unlogged``, ``nested-subvolume``.
        """
        with connect(self._ground.url) as connection, speaking(connection):
            server, unread = describe(connection), rights.unreadable_sequences(connection)
            unlocked = rights.unlockable(connection) if self._writers == "fence" else []
        where = host_and_name(self._ground.url)
        if unread or unlocked:
            how = f"read the {unread[0]}" if unread else f"fence the table {unlocked[0]}"
            raise Refused(f"role {server.role} may not {how}", where,
                          f"grant it to {server.role}, or connect as the owner", "unreadable")
        warnings = [] if server.fsync else ["fsync is off: a power loss may take what was captured"]
        prepared = server.prepared if takes_whole_cluster(self.driver.name) else server.prepared_here
        if prepared:
            what = f"the prepared transaction {prepared[0]} may write at any time"
            if self._writers != "note":
                raise Refused(what, where, "COMMIT PREPARED or ROLLBACK PREPARED it", "prepared-transactions")
            warnings.append(what)
        return warnings + self.driver.preflight()

    @contextmanager
    def capturing(self, checkpoint_id: str, into: Path) -> Iterator[Capture]:
        """Prepare, and yield the capture. If the block fails, or ends without `finish`, nothing of it is left.

        Args:
            checkpoint_id: names what the driver keeps outside the vault.
            into: the checkpoint's `soul/` folder; made.
        """
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        finished = False
        try:
            self.driver.prepare(checkpoint_id, into)
            with ExitStack() as stack:
                capture = Capture.prepared(self._ground.url, self.driver, self._writers, stack)
                write_atomic(into / ACTIVITY, canonical(capture.activity))
                yield capture
                finished = capture.finished
        except BaseException as error:
            try:
                self._abort(into)
            except Exception as second:  # noqa: BLE001 - whatever it is, the first error is the one to hear of
                error.add_note(f"what was captured could not be removed: {second}")
            raise
        if not finished:
            self._abort(into)
            return
        try:
            self.driver.keep()
        except (CheckpointError, OSError) as error:  # it is sealed; the next create takes the mark away
            logger.warning("The capture of %s still bears the mark of one begun: %s", checkpoint_id, error,
                           extra={"event": "soul.mark"})

    def sweep(self, sealed: Callable[[], Collection[str]]) -> None:
        """Take back what creates that died captured outside the vault.

        The caller holds the lock, and has made sure that no attempt before it can be sealed any more. ``sealed``
        gives the ids of the vault; it is asked after the captures were looked for.
        """
        begun = [one for one, driver in self.driver.begun().items() if driver == self.driver.name]
        known = {*sealed()} if begun else set()
        for checkpoint in begun:
            logger.warning("Taking back what %s captured of %s, left by a create that died", self.driver.name,
                           checkpoint, extra={"event": "soul.swept", "checkpoint": checkpoint})
            self.driver.take_back(checkpoint, sealed=checkpoint in known)

    @staticmethod
    def begun(ground: Ground, helper: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the captures beside PGDATA whose makers died before they were sealed, with their driver."""
        return drivers.begun(ground, helper)

    def _abort(self, into: Path) -> None:
        (into / ACTIVITY).unlink(missing_ok=True)
        self.driver.abort()

    def verify(self, facts: SoulFacts, folder: Path, *, deep: bool = False) -> list[str]:
        """Return each damage in one sentence; the files' digests were checked by the caller."""
        try:
            return self.driver.verify(facts.evidence, folder, deep=deep)
        except KeyError as error:
            return [f"manifest.json: the evidence of the driver {facts.driver} lacks {error}"]

    def plan_stage(self, facts: SoulFacts, ticket: str) -> Evidence:
        """Say what `stage` will make; to be written into the journal first."""
        return {**self._restorer.plan_stage(facts.evidence, ticket), "soul_generation": self._generation()}

    def stage(self, facts: SoulFacts, folder: Path, ticket: str) -> Evidence:
        """Bring the data back aside, invisible; once more with the same ticket makes them anew."""
        generation = self._generation()
        return {**self._restorer.stage(facts.evidence, folder, ticket), "soul_generation": generation}

    def animate(
        self, staged: Evidence, *, facts: SoulFacts, generation: int, signature: str,
        repos: dict[str, dict[str, str]], journal: str,
    ) -> None:
        """Give the staged data their sequences and a witness that says `restoring`.

        Raises:
            Damage: a sequence is missing.
            Refused: the data have no witness (code ``no-witness``), do not open, or need a library that is not there
                (code ``extension-missing``).
        """
        with self._restorer.opened(staged) as url, connect(url) as connection, speaking(connection):
            patient(connection)
            extensions.refuse_without_library(connection)
            sequences.write(connection, facts.sequences)
            witness.mark_restoring(
                connection, generation=generation, signature=signature, repos=repos, journal=journal)

    @contextmanager
    def opened(self, staged: Evidence) -> Iterator[str]:
        """Give a connection URL to the staged data, which nobody else reaches; stopped or shut again afterwards."""
        with self._restorer.opened(staged) as url:
            yield url

    def amcheck(self, url: str) -> str:
        """Check tables and indexes for damage by pg_amcheck; return what it said, or why it could not be run.

        Raises:
            Damage: it found some.
        """
        with connect(url) as connection, speaking(connection):
            major = describe(connection).major
        program = find("pg_amcheck", self._ground.pg_bin, major)
        if program is None:
            return "left out: there is no pg_amcheck"
        address, secret = without_password(url, "lych-checkpoint rehearse")
        try:
            run([program, "--install-missing", "--no-password", address], timeout_s=_AMCHECK_S,
                environment=secret)
        except Refused as error:
            if error.facts.get("exit") == _AMCHECK_DAMAGE:
                # It names the relation first, then what is wrong there, and goes on to the next one.
                raise Damage(f"pg_amcheck: {' '.join(error.facts['said'][:2])}", host_and_name(url),
                             "restore another checkpoint") from error
            return f"left out: {error.what}"
        return "passed"

    def shut_out(self) -> None:
        """Keep every other client off the live data, where that can be had without stopping the server."""
        self._restorer.shut_out()

    def let_in(self) -> None:
        """Undo `shut_out` for whatever data is live now."""
        self._restorer.let_in()

    def switch(self, staged: Evidence) -> None:
        """Make the staged data live and keep the displaced whole; done already is done."""
        self._restorer.switch(staged)

    def switch_back(self, staged: Evidence) -> None:
        """Make the displaced data live again; never switched is done already."""
        self._restorer.switch_back(staged)

    def check(self, facts: SoulFacts, generation: int, journal: str) -> None:
        """Make sure that the live server runs on the restored data.

        Raises:
            Refused: it does not (code ``soul-differs``).
            Away: it cannot be asked.
        """
        odd = self._restorer.standing()
        with connect(self._ground.url) as connection, speaking(connection):
            known = witness.read(connection)
            identifier = system_identifier(connection)
        if known is None:
            odd.append("the live data have no witness")
        elif known.generation != generation or (known.state == "restoring" and known.journal != journal):
            odd.append(f"the live data are of generation {known.generation} and restore {known.journal or 'none'}, "
                       f"not {generation} and {journal}")
        known_one = facts.system_identifier and takes_whole_cluster(facts.driver)
        if known_one and identifier not in ("", facts.system_identifier):
            odd.append(f"the live cluster is {identifier}, the captured one was {facts.system_identifier}")
        if odd:
            raise Refused("; ".join(odd), host_and_name(self._ground.url), "lych-checkpoint recover", "soul-differs")

    def displaced(self, staged: Evidence, facts: SoulFacts) -> SoulFacts:
        """Return the facts under which the displaced data can be sealed.

        Args:
            staged: of the restore that displaced them.
            facts: of the checkpoint that displaced them, for the server and the database, which are the same.

        Sequences are left out: data displaced by a clean stop, or still in their server, hold theirs exactly.
        """
        return SoulFacts(
            driver=self.driver.name, database=facts.database, server_version=facts.server_version,
            system_identifier=facts.system_identifier, generation=int(staged["soul_generation"]),
            evidence=self._restorer.displaced(staged),
        )

    def discard_stage(self, staged: Evidence) -> None:
        """Remove staged data that was never switched, or was switched back."""
        self._restorer.discard_stage(staged)

    def discard(self, facts: SoulFacts) -> None:
        """Remove what a checkpoint keeps outside its own directory."""
        self.driver.discard(facts.evidence)

    @property
    def _restorer(self) -> Driver:
        if isinstance(self.driver, Helped):
            raise Refused("a restore needs the rights of PGDATA's owner, which LYCH_HELPER does not lend",
                          "LYCH_HELPER", "run it as root or as that user: what it writes keeps its owner",
                          "needs-owner")
        return self.driver

    def _generation(self) -> int:
        with connect(self._ground.url) as connection:
            known = witness.read(connection)
        return known.generation if known else 0
