"""The steps of a restore. Each writes the journal first, and each may be done twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from lych_checkpoint import body, freeze, hosts, journal, seal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.database.server import identity
from lych_checkpoint.errors import Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.journal import Journal
from lych_checkpoint.lease import marks
from lych_checkpoint.manifest import BodyLock, FreezeFacts, Manifest, witnessed
from lych_checkpoint.soul import Soul
from lych_checkpoint.vault import write_atomic

#: The phases whose times a restore keeps: from the second to the last but one nobody works.
PHASES = ("stage", "freeze", "close", "switch", "awake", "finish")
#: How the record of a restore says that it ended well.
RESTORED = "restored"

logger = logging.getLogger(__name__)


class Restoration:
    """One restore: what it brings back, and the journal that says how far it is."""

    def __init__(
        self, federation: Federation, manifest: Manifest, entry: Journal, soul: Soul, *, recovered: bool = False,
    ) -> None:
        self._federation, self._manifest, self._journal, self._soul = federation, manifest, entry, soul
        self._recovered = recovered
        self._folder = federation.vault.path(manifest.id)
        self._lock = BodyLock.loads((self._folder / "lychd.lock").read_text(), str(self._folder / "lychd.lock"))
        self._root = federation.settings.root
        self._shadow = federation.shadow
        self._phases_ms: dict[str, float] = {}
        self._since_s = time.monotonic()

    @classmethod
    def begin(cls, federation: Federation, manifest: Manifest, *, safety: bool) -> Restoration:
        """Open the journal of a new restore. Without ``safety`` what it displaces is removed when it has ended."""
        settings = federation.settings
        with connect(settings.need("database_url")) as connection:
            known = witness.read(connection)
        soul = Soul.open(federation.ground(), manifest.soul.driver, settings.writers, settings.helper)
        entry = journal.begin(
            federation.vault, checkpoint=manifest.id, ticket=federation.vault.new_id(datetime.now(UTC)),
            generation=next_generation(federation, known), epoch=known.epoch if known else 0, safety=safety,
        )
        return cls(federation, manifest, entry, soul)

    @classmethod
    def resume(cls, federation: Federation, entry: Journal) -> Restoration:
        """Take up a restore whose process died."""
        manifest = federation.vault.manifest(entry.checkpoint)
        soul = Soul.reopen(federation.ground(), manifest.soul.driver, entry.staged)
        return cls(federation, manifest, entry, soul, recovered=True)

    def stage(self) -> None:
        """Bring both halves back aside: invisible, complete, or not at all."""
        self._advance("staging")
        body.stage(self._lock, self._root, self._folder / "body", self._journal.ticket)
        self._advance("staging", staged=self._soul.plan_stage(self._manifest.soul, self._journal.ticket))
        staged = self._soul.stage(self._manifest.soul, self._folder / "soul", self._journal.ticket)
        self._advance("staging", staged=staged)
        self._animate()
        self._time("stage")

    def ask_hosts(self) -> None:
        """Have a worker on every other host say that the body can be checked out there."""
        hosts.ask(self._federation.store(), self._lock, self._journal.ticket,
                  self._federation.settings.ack_timeout_s)

    def close_in(self, frozen: freeze.Freeze) -> None:
        """Shut every other client out; from here on no worker may start before this restore has ended."""
        self._time("freeze")
        self._advance("closing")
        self._outgrow()
        self._soul.shut_out()
        frozen.confirm()
        displaced = body.displace(self._federation.found(), self._root, self._journal.ticket, self._shadow,
                                  self._federation.leave_out(),
                                  limit_bytes=self._federation.settings.dirty_limit_bytes)
        body.clear_locks(displaced, self._root)
        self._advance("closing", displaced=displaced.dumps(), freeze=asdict(frozen.facts_so_far()))
        self._time("close")

    def switch(self) -> None:
        """Make the staged pair live. May be done again from any point of it."""
        self._advance("switching")
        self._soul.switch(self._journal.staged)
        body.switch(self._lock, self._root, self._journal.ticket, alone=True)
        differences = body.verify(self._lock, self._root, self._federation.leave_out(), self._shadow)
        if differences:
            raise Refused(f"the body is not what was sealed: {differences[0]}", str(self._root), "", "body-differs")
        self._soul.check(self._manifest.soul, self._journal.generation, self._journal.ticket)
        self._time("switch")

    def awake(self) -> None:
        """Say everywhere that the new pair is the pair: from here on workers may start on it."""
        federation, entry = self._federation, self._journal
        self._advance("done")
        self._soul.let_in()
        with connect(federation.settings.need("database_url")) as connection:
            witness.mark_awake(connection, entry.ticket)
            soul = identity(connection)
        federation.vault.append_lineage("restore", entry.generation, self._lock.signature,
                                        checkpoint=entry.checkpoint, journal=entry.ticket, soul=soul,
                                        displaced=hosts.displaced(BodyLock.loads(entry.displaced, "journal")),
                                        base=self._manifest.soul.generation, epoch=self._manifest.freeze.epoch,
                                        frozen_ms=int(self._manifest.freeze.frozen_at * 1000))
        hosts.follow(self._root, entry.generation)
        write_atomic(self._root / "lychd.lock", (self._folder / "lychd.lock").read_bytes(), mode=0o644)
        marks.mark_restored(federation.store(), entry.generation)
        self._time("awake")

    def finish(self) -> None:
        """Seal what was displaced and close the journal, after the thaw: nothing that lives is read for it."""
        if self._journal.safety:
            self._seal_safety()
        else:
            self._remove_displaced()
        self._time("finish")
        self._close(RESTORED, driver=self._manifest.soul.driver, phases_ms=self._phases_ms)

    def undo(self, why: str) -> None:
        """Bring the old pair back and leave nothing staged, unless it is done. May be done again from any point."""
        entry = journal.read(self._federation.vault)  # anew: a write that failed may stand all the same
        if entry is None or entry.phase == "done":
            return
        if entry.phase == "switching":
            if entry.displaced:
                body.switch_back(BodyLock.loads(entry.displaced, "journal"), self._root, entry.ticket, alone=True)
            self._soul.switch_back(entry.staged)
        if entry.phase in ("closing", "switching"):
            self._soul.let_in()
        if entry.phase != "undone":  # what is removed next cannot be switched to any more
            self._advance("undone", why=why)
        if entry.staged:
            self._soul.discard_stage(entry.staged)
        self._close(f"undone: {entry.why or why}")

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Undo when the body of the `with` fails; if that fails too the journal stays open for `recover`."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, RestoreOpen):
                raise
            try:
                self.undo(str(error) or type(error).__name__)
            except Exception as second:  # noqa: BLE001 - whatever it is, the journal is open, and that is to be said
                error.add_note(f"it could not be undone either: {second}")
                raise RestoreOpen(f"{error}; undoing it failed: {second}", self._manifest.id,
                                  "lych-checkpoint recover") from error
            raise

    def document(self) -> dict[str, Any]:
        """Return what happened."""
        return {"checkpoint": self._manifest.id, "safety": self._journal.ticket if self._journal.safety else None,
                "generation": self._journal.generation, "phases_ms": self._phases_ms}

    def _outgrow(self) -> None:
        """Take a generation above those that were imprinted while this one staged; from here on gates answer 75."""
        with connect(self._federation.settings.need("database_url")) as connection:
            generation = next_generation(self._federation, witness.read(connection))
        if generation > self._journal.generation:
            self._advance("closing", generation=generation)
            self._animate()

    def _animate(self) -> None:
        entry = self._journal
        self._soul.animate(entry.staged, facts=self._manifest.soul, generation=entry.generation,
                           signature=self._lock.signature, repos=witnessed(self._lock.repos), journal=entry.ticket)

    def _seal_safety(self) -> None:
        """Seal the displaced pair under the ticket's id, unless that was done before a kill."""
        federation, entry = self._federation, self._journal
        if entry.ticket in federation.vault.ids():
            return
        displaced = BodyLock.loads(entry.displaced, "journal")
        with federation.vault.partial(entry.ticket) as partial:
            write_atomic(partial / "lychd.lock", displaced.dumps().encode())
            doubts = body.bundle_lock(displaced, self._root, entry.ticket, partial / "body",
                                      federation.vault.last_bundles())
            soul = self._soul.displaced(entry.staged, self._manifest.soul)
            seal.seal(partial, replace(
                self._manifest, id=entry.ticket, created_at=displaced.created_at, signature=displaced.signature,
                freeze=FreezeFacts.of(entry.freeze), warnings=tuple(doubts), tags={},
                repos=displaced.commits, soul=soul, safety=True, label="", reason=f"displaced by {self._manifest.id}",
                previous=federation.vault.last_seal(), files={}, coalesced=0,
                unheld=body.unheld(self._root, entry.ticket),
            ), federation.settings.key_path)
            federation.vault.publish(entry.ticket)

    def _remove_displaced(self) -> None:
        """Remove the displaced pair. The journal says which data first: half removed they cannot be told any more."""
        if not self._journal.discarding:
            displaced = self._soul.displaced(self._journal.staged, self._manifest.soul)
            self._advance("done", discarding=displaced.evidence)
        self._soul.discard(replace(self._manifest.soul, evidence=self._journal.discarding))
        body.unpin(self._federation.found(), self._journal.ticket, self._shadow)

    def _close(self, outcome: str, **more: Any) -> None:
        body.unstage(self._lock, self._root, self._journal.ticket)
        marks.mark_journal(self._federation.store(), "")
        journal.close(self._federation.vault, outcome, recovered=self._recovered, **more)

    def _advance(self, phase: str, **facts: Any) -> None:
        self._journal = journal.advance(self._federation.vault, phase, **facts)
        marks.mark_journal(self._federation.store(), phase)

    def _time(self, phase: str) -> None:
        now_s = time.monotonic()
        self._phases_ms[phase] = round((now_s - self._since_s) * 1000, 1)
        self._since_s = now_s


def next_generation(federation: Federation, known: witness.Witness | None) -> int:
    """Return the generation that a restore makes: above all that the soul or the vault ever knew."""
    last = federation.vault.last_lineage()
    return max(known.generation if known else 0, int(last["generation"]) if last else 0) + 1
