"""One pg_dump that sees the instant of the freeze, from before the freeze to its end.

The safe recipe: the snapshot is exported in the window, one pg_dump process imports it and owns ACCESS SHARE on every
table before the window ends. From then on TRUNCATE and rewriting ALTERs wait for it. Without parallel workers: a
queued ALTER would make theirs fail.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from pathlib import Path

from lych_checkpoint.database import Connection, connect, export, patient, speaking
from lych_checkpoint.database.address import without_password
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Running, spawned

#: How long pg_dump may take to lock all tables. Workers stand still that long, so it is a bound and no goal.
_LOCK_WAIT_S = 20.0
_POLL_S = 0.002


class Dumping:
    """Owns two warm connections, the exported snapshot and the pg_dump process. `close` is safe at any point."""

    def __init__(self, url: str, program: Path, archive: Path) -> None:
        self._url, self._program, self.archive = url, program, archive
        self._stack = ExitStack()
        try:
            self.exporter: Connection = self._connected()
            self._watcher: Connection = self._connected()
            with speaking(self._watcher):  # both statements once, so that the server has them warm in the window
                export.unlocked(self._watcher, "nobody", list(export.tables(self.exporter)))
        except BaseException:
            self.close()
            raise
        self._running: Running | None = None
        self._tables: dict[int, export.Table] = {}

    def begin(self) -> None:
        """Take the instant; returns when pg_dump owns its locks.

        Raises:
            Refused: pg_dump failed or is too slow, or a table was rewritten meanwhile (code ``snapshot-moved``).
        """
        name = f"lych-dump-{secrets.token_hex(8)}"
        address, secret = without_password(self._url, name)
        with speaking(self.exporter):
            snapshot = export.begin(self.exporter)
            self._tables = export.tables(self.exporter)
            self._running = self._stack.enter_context(spawned([
                self._program, f"--dbname={address}", f"--snapshot={snapshot}", "--format=custom", "--compress=1",
                "--no-password", f"--lock-wait-timeout={round(_LOCK_WAIT_S * 1000)}", f"--file={self.archive}",
            ], environment=secret))
            self._wait_for_locks(name)
            # What was rewritten between the snapshot and the locks would be dumped empty; afterwards nothing can be.
            self._refuse_rewritten([oid for oid, table in self._tables.items() if table.locked], "snapshot-moved")

    def wait(self) -> int:
        """Wait for pg_dump's good end; return how many tables there were.

        Raises:
            Refused: it failed, or a table that pg_dump does not lock was rewritten meanwhile (``dump-raced``).
        """
        if self._running is None:
            raise RuntimeError("the dump was never begun")
        self._running.wait()
        with speaking(self._watcher):
            self._refuse_rewritten([oid for oid, table in self._tables.items() if not table.locked], "dump-raced")
        return len(self._tables)

    def close(self) -> None:
        """End pg_dump if it runs, and the connections."""
        self._stack.close()

    def _connected(self) -> Connection:
        connection = self._stack.enter_context(connect(self._url, name="lych-checkpoint dump"))
        with speaking(connection):
            patient(connection)
        return connection

    def _wait_for_locks(self, name: str) -> None:
        wanted = [oid for oid, table in self._tables.items() if table.locked]
        deadline = time.monotonic() + _LOCK_WAIT_S
        while export.unlocked(self._watcher, name, wanted):
            if self._running is not None and self._running.ended:
                self._running.wait()
                return  # a whole dump, ended within the poll: it held its locks until then
            if time.monotonic() > deadline:
                raise Refused(f"pg_dump did not lock all tables within {_LOCK_WAIT_S:g} s", self._url_shown(),
                              "look for a lock that waits in pg_locks", "dump-locks")
            time.sleep(_POLL_S)

    def _refuse_rewritten(self, oids: list[int], code: str) -> None:
        present = export.tables(self._watcher)
        for oid in oids:
            if oid not in present or present[oid].file != self._tables[oid].file:
                raise Refused(f"the table {self._tables[oid].name} was rewritten or dropped while it was dumped",
                              self._url_shown(), "create again", code)

    def _url_shown(self) -> str:
        return without_password(self._url, "")[0]
