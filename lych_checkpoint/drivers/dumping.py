"""One pg_dump that sees the instant of the freeze, from before the freeze to its end.

The safe recipe: the snapshot is exported in the window, one pg_dump process imports it and owns ACCESS SHARE on every
table before the window ends. From then on TRUNCATE and rewriting ALTERs wait for it. Parallel workers lock each
table again, without waiting: one ALTER that waits in between makes the dump fail, but never wrong.
"""

from __future__ import annotations

import secrets
import shutil
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lych_checkpoint import progress
from lych_checkpoint.database import Connection, connect, export, patient, speaking
from lych_checkpoint.database.address import without_password
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Running, spawned

#: How long pg_dump may take to lock all tables. Workers stand still that long, so it is a bound and no goal.
_LOCK_WAIT_S = 20.0
_POLL_S = 0.002
#: With less no file can grow on.
_ROOM_BYTES = 1 << 16
#: How pg_dump's session is called, by which it is found when we are not there any more; 63 characters at most.
_NAME, _NAME_CHARACTERS, _NONCE_BYTES = "lych-dump-", 40, 4


class Dumping:
    """Owns two warm connections, the exported snapshot and the pg_dump process. `close` is safe at any point."""

    def __init__(self, url: str, program: Path, archive: Path, checkpoint: str, jobs: int = 1) -> None:
        self._url, self._program, self.archive = url, program, archive
        self._jobs = jobs
        self._form = ("--format=custom",) if jobs == 1 else ("--format=directory", f"--jobs={jobs}")
        self._name = f"{_NAME}{checkpoint[:_NAME_CHARACTERS]}-{secrets.token_hex(_NONCE_BYTES)}"
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
        address, secret = without_password(self._url, self._name)
        with speaking(self.exporter):
            snapshot = export.begin(self.exporter)
            self._tables = export.tables(self.exporter)
            self._running = self._stack.enter_context(spawned([
                self._program, f"--dbname={address}", f"--snapshot={snapshot}", *self._form, "--compress=1",
                "--no-password", f"--lock-wait-timeout={round(_LOCK_WAIT_S * 1000)}", f"--file={self.archive}",
            ], environment=secret))
            self._wait_for_locks()
            # What was rewritten between the snapshot and the locks would be dumped empty; afterwards nothing can be.
            self._refuse_rewritten([oid for oid, table in self._tables.items() if table.locked], "snapshot-moved")

    def wait(self) -> int:
        """Wait for pg_dump's good end; return how many tables there were.

        Raises:
            Refused: it failed, for want of room (``no-room``) or else, or a table that pg_dump does not lock was
                rewritten meanwhile (``dump-raced``).
        """
        if self._running is None:
            raise RuntimeError("the dump was never begun")
        try:
            with progress.told("pg_dump", partial(progress.written_bytes, self.archive)):
                self._running.wait()
        except Refused as error:
            if shutil.disk_usage(self.archive.parent).free < _ROOM_BYTES:  # what it says of that has many languages
                raise Refused("there was no room left for the dump", str(self.archive),
                              "make room, then create again", "no-room") from error
            if self._jobs > 1:
                error.mend = "create again; with LYCH_DUMP_JOBS=1 no ALTER or TRUNCATE that waits can make it fail"
            raise
        with speaking(self._watcher):
            self._refuse_rewritten([oid for oid, table in self._tables.items() if not table.locked], "dump-raced")
        return len(self._tables)

    @staticmethod
    def running(connection: Connection) -> list[str]:
        """Return the checkpoints for which a pg_dump of this database runs, whoever started it."""
        return sorted({name[len(_NAME):-2 * _NONCE_BYTES - 1] for name in export.sessions(connection, _NAME)})

    @staticmethod
    def end(connection: Connection, checkpoint: str) -> None:
        """End the sessions of that checkpoint's pg_dump, which then fails."""
        export.end_sessions(connection, f"{_NAME}{checkpoint}-")

    def close(self) -> None:
        """End pg_dump if it runs, and the connections."""
        self._stack.close()

    def _connected(self) -> Connection:
        connection = self._stack.enter_context(connect(self._url, name="lych-checkpoint dump"))
        with speaking(connection):
            patient(connection)
        return connection

    def _wait_for_locks(self) -> None:
        wanted = [oid for oid, table in self._tables.items() if table.locked]
        deadline = time.monotonic() + _LOCK_WAIT_S
        while export.unlocked(self._watcher, self._name, wanted):
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
