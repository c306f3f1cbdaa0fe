"""Reflinks: the whole cluster by clones of its files, on a file system that can share bytes; see `aside`.

The files are cloned before the freeze, in backup mode. The window only reads how far the WAL is on the disk; after
the thaw the WAL up to there is cloned too, and cut there. A recovery of the copy replays it and ends at the instant.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from lych_checkpoint.database import Connection, backup, connect, patient, speaking
from lych_checkpoint.database.server import Server
from lych_checkpoint.drivers import kernel
from lych_checkpoint.drivers.aside import Aside
from lych_checkpoint.drivers.base import Evidence, Ground, Unfit
from lych_checkpoint.drivers.clones import Clones, no_place, unclonable
from lych_checkpoint.drivers.shelf import evidence_of
from lych_checkpoint.errors import Refused

#: A file cannot be written while it is cloned. Measured: about 0.01 ms for each of its pieces.
_EXTENT_MS = 0.01
_LONGEST_MS = 1000.0
#: No smaller file can be in so many pieces.
_LARGE_BYTES = int(_LONGEST_MS / _EXTENT_MS) * 4096


class ReflinkDriver(Aside[Clones]):
    """Clones in backup mode before the freeze, one question in the window, WAL cut at its answer after the thaw."""

    name = "reflink"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground, Clones)
        self._stack = ExitStack()
        self._connection: Connection | None = None
        self._label = ""
        self._instant = 0

    def no_place(self, pgdata: Path) -> Unfit | None:
        """Return None, or why files of ``pgdata`` cannot be cloned to beside it."""
        return no_place(pgdata) or unclonable(pgdata)

    def probe(self) -> Unfit | None:
        """Return None, or why this cluster cannot be captured by clones. Raises Away if the server is not there."""
        unfit = super().probe()
        if unfit is not None:
            return unfit
        with connect(self._ground.url) as connection, speaking(connection):
            unable = backup.unable(connection)
        return Unfit(*unable) if unable else None

    def _ready(self, checkpoint: str) -> None:
        """Clone the files in backup mode, and keep the WAL from there on."""
        shelf = self._shelf()
        shelf.make()
        shelf.need_room()
        connection = self._stack.enter_context(connect(self._ground.url))
        self._connection = connection
        with speaking(connection):
            patient(connection)
            backup.begin(connection)
            self._begin(checkpoint)
            shelf.take(checkpoint)
            self._label = backup.end(connection)
            backup.flushed(connection)  # once, so that the server has it warm in the window

    def _take(self) -> None:
        """Read how far the WAL is on the disk: all that was committed is, for the window's flush came before."""
        connection = self._session()
        with speaking(connection):
            self._instant = backup.flushed(connection)

    def _finish(self) -> Evidence:
        """Add the WAL up to the instant, flush, close the copy, and write down its identity.

        Raises:
            Away: the server went, and may have dropped WAL meanwhile.
        """
        connection, shelf, name = self._session(), self._shelf(), self._taking
        with speaking(connection):
            size = backup.segment_bytes(connection)
            shelf.take_wal(name, backup.segments(connection, self._label, self._instant), size,
                           cut_at=(self._instant - 1) % size + 1)
            backup.release(connection)
        shelf.write(name, "backup_label", self._label.encode())
        shelf.sync()
        shelf.close(name, read_only=True)
        self._stack.close()
        return evidence_of(shelf, name)

    def abort(self) -> None:
        """Remove the copy, if it was begun, and leave backup mode."""
        self._stack.close()
        super().abort()

    def _warnings(self, server: Server) -> list[str]:
        self._refuse_shattered()
        return super()._warnings(server)

    def _refuse_shattered(self) -> None:
        for root, _, names in os.walk(self._shelf().pgdata / "base"):
            for name in names:
                path = Path(root) / name
                try:
                    if path.stat(follow_symlinks=False).st_size < _LARGE_BYTES:
                        continue
                    with path.open("rb") as file:
                        pieces = kernel.extents(file.fileno())
                except FileNotFoundError:
                    continue
                if pieces * _EXTENT_MS > _LONGEST_MS:
                    raise Refused(f"{path} lies in {pieces} pieces: nobody could write it for about "
                                  f"{pieces * _EXTENT_MS / 1000:.1f} s while it is cloned", str(path),
                                  "VACUUM FULL that table, or LYCH_DRIVER=dump", "too-many-extents")

    def _session(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("prepare was not called")
        return self._connection
