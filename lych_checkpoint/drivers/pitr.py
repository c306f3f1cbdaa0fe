"""PITR: the whole cluster as a base backup and the WAL up to a named point, on any file system; see `aside`.

A base is copied in backup mode before the first freeze, and again when the WAL since has grown as large as it or the
server's history is another one. The window only names a point. After the thaw the WAL up to it is copied out of
pg_wal, where a slot of ours has kept it: no archive command, and no program that must always run.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lych_checkpoint.database import Connection, backup, connect, patient, points, quiet, speaking
from lych_checkpoint.database.server import Server
from lych_checkpoint.drivers import kernel
from lych_checkpoint.drivers.archive import Archive, Point
from lych_checkpoint.drivers.aside import Aside
from lych_checkpoint.drivers.base import Evidence, Ground, Unfit
from lych_checkpoint.drivers.clones import Clones, Tree, no_place, unclonable
from lych_checkpoint.drivers.shelf import evidence_of
from lych_checkpoint.errors import CheckpointError, Refused

#: A base is not made anew for less WAL than this.
_FEW_BYTES = 1 << 30
#: A point's name has 63 at most.
_NAME_CHARACTERS = 40
#: No other target and no archive may have a say; an older server takes one target only when all before it are empty.
_RECOVERY = {
    "hot_standby": "off", "restore_command": "false", "archive_cleanup_command": "", "recovery_end_command": "",
    "recovery_target": "", "recovery_target_time": "", "recovery_target_xid": "", "recovery_target_lsn": "",
    "recovery_target_action": "promote",
}


class PitrDriver(Aside[Clones]):
    """A base and WAL; a named point in the window; recovery to exactly that point, on exactly its timeline."""

    name = "pitr"
    forks = True

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground, Clones)
        self._stack = ExitStack()
        self._connection: Connection | None = None
        self._laying = ""
        self._target = ""
        self._instant = 0

    def no_place(self, pgdata: Path) -> Unfit | None:
        """Return None, or why copies beside ``pgdata`` cannot be told apart or exchanged with it."""
        with kernel.directory(pgdata) as top:
            kernel.identity(top)
        if pgdata.stat().st_dev != pgdata.parent.stat().st_dev:
            return Unfit(f"{pgdata.parent} is not on the same file system as {pgdata}",
                         "LYCH_DRIVER=btrfs for a subvolume; else stop the server, and move PGDATA to "
                         f"{pgdata / 'data'}")
        return no_place(pgdata)

    def probe(self) -> Unfit | None:
        """Return None, or why this cluster cannot be captured so. Raises Away if the server is not there."""
        unfit = super().probe()
        if unfit is not None:
            return unfit
        with connect(self._ground.url) as connection, speaking(connection):
            unable = backup.unable(connection) or points.unable(connection)
        return Unfit(*unable) if unable else None

    def _ready(self, checkpoint: str) -> None:
        """Make sure of a base, and connect for the window."""
        shelf = self._shelf()
        shelf.make()
        # To the end of `_finish`: another federation on this cluster would sweep a base that has no point yet.
        self._stack.enter_context(shelf.alone())
        self._begin(checkpoint)  # before the base, whose slot would keep all WAL for ever
        connection = self._connection = self._stack.enter_context(connect(self._ground.url))
        with speaking(connection):
            patient(connection)
            known = shelf.noted("base")
            if known is None or not self._goes_on(connection, known):
                self._lay_base(connection, _base_of(checkpoint))
            shelf.need_room()
            points.name_point(connection, "lych-checkpoint")  # once, so that the server has it warm in the window
        # The first of two points of one name would win.
        self._target = f"lych-{checkpoint[:_NAME_CHARACTERS]}-{secrets.token_hex(8)}"

    def _take(self) -> None:
        """Name the point."""
        connection = self._session()
        with speaking(connection):
            self._instant = points.name_point(connection, self._target)

    def _finish(self) -> Evidence:
        """Bring the point onto the disk, keep the WAL up to it, and write down its identity.

        Raises:
            Away: the server went.
            Damage, Refused: it dropped WAL meanwhile (`max_slot_wal_keep_size`).
        """
        connection, shelf, name = self._session(), self._shelf(), self._taking
        archive = Archive(shelf)
        known = shelf.noted("base")
        if known is None:
            raise Refused("the note of the base is gone", str(shelf.path), "create again", "no-base")
        with speaking(connection):
            quiet.flush(connection)
            size = backup.segment_bytes(connection)
            *whole, last = backup.segments(connection, known["label"], self._instant)
            point = Point(base=known["base"], segments=tuple(whole), last=last)
            length = (self._instant - 1) % size + 1
            archive.take_segments(point, size, proven_below=known["segment"])
            archive.take_point(name, point, size, cut_at=length)
            # All of the last segment is kept on: the next base check and the next point need it from its begin.
            points.advance(connection, point.base, self._instant - length)
        shelf.sync()
        shelf.close(name, read_only=True)
        self._note({**known, "segment": last, "length": length})
        self._stack.close()
        return {**evidence_of(shelf, name), "generation": archive.generation(name), "target": self._target,
                "timeline": int(last[:8], 16)}

    def abort(self) -> None:
        """Remove what was begun: the point, or the base. A base that was done is kept for the next try."""
        with self._stack:
            if self._laying:
                with suppress(CheckpointError), connect(self._ground.url) as connection, speaking(connection):
                    points.drop_others(connection, ())
                Archive(self._shelf()).remove_base(self._laying)
                self._laying = ""
            super().abort()

    def verify(self, evidence: Evidence, folder: Path, *, deep: bool = False) -> list[str]:
        """Compare the identity of the point, its base and its WAL; with ``deep`` recover it and check every page."""
        shelf = self._shelf_of(evidence)
        lacking = [f"{shelf.path / one} is gone" for one in Archive(shelf).lacking(str(evidence["snapshot"]))]
        return lacking or super().verify(evidence, folder, deep=deep)

    def plan_stage(self, evidence: Evidence, ticket: str) -> Evidence:
        """Name the copy of this restore, and where its recovery ends; changes nothing."""
        ends: Evidence = {key: evidence[key] for key in ("target", "timeline") if key in evidence}
        return {**super().plan_stage(evidence, ticket), **ends}

    def stage(self, evidence: Evidence, folder: Path, ticket: str) -> Evidence:
        """Refuse before anything is copied if it would not fit. What an earlier try left is made anew."""
        shelf = self._shelf_of(evidence)
        shelf.need_room(Archive(shelf).bytes_of(str(evidence["snapshot"])) if unclonable(shelf.pgdata) else 0)
        return super().stage(evidence, folder, ticket)

    def generation(self, shelf: Clones, name: str) -> int:
        """Return a digest of the point with its base and its WAL."""
        return Archive(shelf).generation(name)

    def unfold(self, shelf: Clones, name: str, writable: str) -> Tree:
        """Copy a point's base and WAL, or displaced data as they are."""
        return Archive(shelf).unfold(name, writable)

    def recovery(self, staged: Evidence) -> dict[str, str]:
        """Return the settings with which a point's copy recovers; they say nothing to one that has recovered."""
        if "target" not in staged:
            return {}
        return {**_RECOVERY, "recovery_target_timeline": str(staged["timeline"]),
                "recovery_target_name": str(staged["target"])}

    def discard(self, evidence: Evidence) -> None:
        """Remove a checkpoint's point, and its base when no other point needs that: WAL is then kept no longer."""
        super().discard(evidence)
        shelf = self._shelf_of(evidence)
        with shelf.alone():
            left = Archive(shelf).sweep("")
            known = shelf.noted("base")
            if known is not None and known["base"] not in left:
                shelf.forget("base")
                with suppress(CheckpointError), connect(self._ground.url) as connection, speaking(connection):
                    points.drop_others(connection, left)

    def _warnings(self, server: Server) -> list[str]:
        warnings = super()._warnings(server)
        with connect(self._ground.url) as connection, speaking(connection):
            if points.unbounded(connection):
                warnings.append("the server keeps all WAL since the last checkpoint: set max_slot_wal_keep_size, "
                                "beyond which the next checkpoint makes a new base")
        return warnings

    def _goes_on(self, connection: Connection, known: dict[str, Any]) -> bool:
        """Whether the server came from that base, not too far, and kept its WAL, and all that we have is intact."""
        if not points.keeps(connection, known["base"]):
            return False
        if known.get("links") != self._links:  # its WAL makes a tablespace whose place may be gone, or in use
            return False
        archive, size = Archive(self._shelf()), backup.segment_bytes(connection)
        if archive.state(known["base"], known["segment"]) != known["state"]:
            return False
        since = backup.segments(connection, known["label"], backup.flushed(connection))
        if not since or int(since[0][:8], 16) != backup.timeline(connection):
            return False
        if len(since) * size > max(int(known["bytes"]), _FEW_BYTES):
            return False
        # A copy of the server that was taken earlier has the slot, but wrote other WAL since.
        return archive.digest(str(known["segment"]), int(known["length"])) == str(known["digest"])

    def _remove(self, checkpoint: str) -> None:
        """Remove a point, and the base that was laid for it unless it was done and serves others."""
        super()._remove(checkpoint)
        shelf, base = self._shelf(), _base_of(checkpoint)
        archive = Archive(shelf)
        with shelf.alone():
            known = shelf.noted("base")
            if (known is None or known["base"] != base) and not archive.is_needed(base):
                with connect(self._ground.url) as connection, speaking(connection):
                    points.drop(connection, base)
                archive.remove_base(base)

    def _lay_base(self, connection: Connection, base: str) -> None:
        shelf = self._shelf()
        archive = Archive(shelf)
        shelf.need_room(archive.live_bytes() if unclonable(shelf.pgdata) else 0)
        points.drop_others(connection, ())
        self._laying = base
        points.keep(connection, base)
        backup.begin(connection)
        archive.take_base(base)
        label = backup.end(connection)
        backup.release(connection)
        held = archive.close_base(base, label)
        until = backup.flushed(connection)
        size = backup.segment_bytes(connection)
        segment, length = backup.segments(connection, label, until)[-1], (until - 1) % size + 1
        self._note({"base": base, "label": label, "bytes": held, "segment": segment, "length": length,
                    "links": self._links})
        self._laying = ""
        archive.sweep(base)

    def _note(self, known: dict[str, Any]) -> None:
        shelf, segment = self._shelf(), str(known["segment"])
        archive = Archive(shelf)
        shelf.note("base", {**known, "digest": archive.digest(segment, int(known["length"])),
                            "state": archive.state(str(known["base"]), segment)})

    def _session(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("prepare was not called")
        return self._connection


def _base_of(checkpoint: str) -> str:
    """Return what the base laid for that checkpoint is called: after a kill nothing else tells whose it is."""
    return hashlib.sha256(checkpoint.encode()).hexdigest()[:8]
