"""The universal driver: one database by pg_dump, on any server and file system, without superuser.

In the vault lie `dump.pgc` and `settings.json` (what a dump of one database forgets). A restore builds a database
beside the live one and renames both in one transaction; the displaced database stays, shut, as the safety copy.
Databases are told apart by oid, which a rename does not change, so every step knows after a kill whether it was done.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lych_checkpoint.database import Connection, catalogue, connect, portrait, roles, speaking
from lych_checkpoint.database.address import name_of, with_name
from lych_checkpoint.database.server import Server, describe
from lych_checkpoint.drivers import dumpable
from lych_checkpoint.drivers.base import Evidence, Ground, Unfit
from lych_checkpoint.drivers.dumping import Dumping
from lych_checkpoint.drivers.forgotten import Forgotten
from lych_checkpoint.drivers.loading import RESTORE_S, load
from lych_checkpoint.drivers.programs import find, major_of, need
from lych_checkpoint.errors import CheckpointError, Damage, Refused
from lych_checkpoint.process import run

#: One file, or with LYCH_DUMP_JOBS a directory.
_FILE, _DIRECTORY = "dump.pgc", "dump.pgd"
_SETTINGS = "settings.json"

logger = logging.getLogger(__name__)


class DumpDriver:
    """`pg_dump` that owns its locks before the thaw; restore aside, two renames in one transaction."""

    name = "dump"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._database = name_of(ground.url)
        self._dumping: Dumping | None = None
        self._into: Path | None = None

    def probe(self) -> Unfit | None:
        """Return None, or why pg_dump cannot capture and restore here. Raises Away if the server is not there."""
        server = self._server()
        for name in ("pg_dump", "pg_restore"):
            program = find(name, self._ground.pg_bin)
            if program is None:
                return Unfit(f"{name} was not found", "set LYCH_PG_BIN to its directory")
            try:
                major = major_of(program)
            except CheckpointError as error:
                return Unfit(error.what, error.mend or "set LYCH_PG_BIN")
            if major < server.major:
                return Unfit(f"{program} is of release {major}, older than the server's {server.major}",
                             f"set LYCH_PG_BIN to programs of release {server.major}")
        if not (server.superuser or (server.creates_databases and server.owns_database)):
            return Unfit(f"role {server.role} may not create databases or does not own {server.database}, "
                         "which a restore needs", f"ALTER ROLE {server.role} CREATEDB; "
                         f"ALTER DATABASE {server.database} OWNER TO {server.role}")
        if server.in_recovery:
            return Unfit("the server is a standby", "set LYCH_DATABASE_URL to its primary")
        return None

    def preflight(self) -> list[str]:
        """Refuse what a dump could not take or give back; warn of what it brings back otherwise."""
        with connect(self._ground.url) as connection, speaking(connection):
            return dumpable.check(connection)

    def prepare(self, checkpoint: str, into: Path) -> None:
        """Connect twice, so that the window only spawns pg_dump."""
        self._into = into
        jobs = self._ground.jobs
        self._dumping = Dumping(self._ground.url, need("pg_dump", self._ground.pg_bin),
                                into / (_FILE if jobs == 1 else _DIRECTORY), checkpoint, jobs)

    def capture(self) -> None:
        """Export the snapshot of this instant, and return when pg_dump owns its locks."""
        self._open_dump()[0].begin()

    def finish(self) -> Evidence:
        """Wait for pg_dump's end, and write what it forgets as of the same instant."""
        dumping, into = self._open_dump()
        tables = dumping.wait()
        with speaking(dumping.exporter):
            forgotten = Forgotten.read(dumping.exporter, self._database)
        forgotten.write(into / _SETTINGS)
        dumping.close()
        return {"form": "archive", "archive": dumping.archive.name, "settings": _SETTINGS, "tables": tables}

    def keep(self) -> None:
        """Do nothing: all of it lies in the vault."""

    def begun(self) -> dict[str, str]:
        """Return the checkpoints whose pg_dump still runs: who asks holds the lock, so nobody waits for it."""
        with connect(self._ground.url) as connection, speaking(connection):
            return dict.fromkeys(Dumping.running(connection), self.name)

    def take_back(self, checkpoint: str, *, sealed: bool) -> None:  # noqa: ARG002 - a sealed one's has ended
        """End such a pg_dump, which holds its locks, and keeps the server from cleaning up, for nobody."""
        with connect(self._ground.url) as connection, speaking(connection):
            Dumping.end(connection, checkpoint)

    def abort(self) -> None:
        """End pg_dump and take away its files."""
        try:
            if self._dumping is not None:
                self._dumping.close()
        finally:  # a server that died lets nothing be closed in order
            if self._into is not None:
                for name in (_FILE, _SETTINGS):
                    (self._into / name).unlink(missing_ok=True)
                if (self._into / _DIRECTORY).exists():
                    shutil.rmtree(self._into / _DIRECTORY)

    def verify(self, evidence: Evidence, folder: Path, *, deep: bool = False) -> list[str]:
        """Read the archive's contents list, with ``deep`` all of it; of a safety copy, see whether it is there."""
        if evidence["form"] == "database":
            with self._maintenance() as connection:
                name = catalogue.name_by(connection, int(evidence["oid"]))
            return [] if name == evidence["database"] else [f"the database {evidence['database']} is gone"]
        archive = str(evidence["archive"])
        damages = [f"{name} is missing" for name in (archive, _SETTINGS) if not (folder / name).exists()]
        if damages:
            return damages
        try:
            Forgotten.load(folder / _SETTINGS)
            how = ["--file=/dev/null"] if deep else ["--list"]
            run([need("pg_restore", self._ground.pg_bin), *how, folder / archive], timeout_s=RESTORE_S)
        except ValueError as error:
            return [f"{_SETTINGS} cannot be read: {error}"]
        except Damage as error:
            return [str(error)]
        except Refused as error:
            if error.code != "program-failed":
                raise
            return [f"{archive} cannot be read: {error.what}"]
        return []

    def plan_stage(self, evidence: Evidence, ticket: str) -> Evidence:  # noqa: ARG002 - one plan for both forms
        """Name the databases of this restore; changes nothing."""
        with self._maintenance() as connection:
            live = catalogue.oid_of(connection, self._database)
        return {
            "database": self._database, "live_oid": live,
            "staged": catalogue.beside(self._database, "lych", ticket), "staged_oid": 0,
            "old": catalogue.beside(self._database, "lych_old", ticket),
        }

    def stage(self, evidence: Evidence, folder: Path, ticket: str) -> Evidence:
        """Build a database beside the live one. What an earlier try of this ticket left is made anew."""
        plan = self.plan_stage(evidence, ticket)
        staged = str(plan["staged"])
        with self._maintenance() as connection:
            if catalogue.oid_of(connection, str(plan["old"])):
                raise Refused(f"restore {ticket} was switched already", self._database, "lych-checkpoint recover")
            catalogue.refuse_unendable(connection, self._database)
            catalogue.drop(connection, staged)
            if evidence["form"] == "database":
                source = int(evidence["oid"])
                picture = portrait.read(connection, source)
                catalogue.copy(connection, catalogue.name_by(connection, source), staged, picture.owner)
            else:
                forgotten = Forgotten.load(folder / _SETTINGS)
                picture = forgotten.portrait
                roles.refuse_missing(connection, forgotten.roles)
                portrait.create(connection, staged, picture)
                load(with_name(self._ground.url, staged), folder / str(evidence["archive"]),
                     need("pg_restore", self._ground.pg_bin), self._ground.jobs, forgotten.extensions,
                     lambda: self._size_bytes(staged))
                for difference in roles.differences(connection, forgotten.roles):
                    logger.warning("%s", difference, extra={"event": "soul.role"})
            portrait.apply(connection, staged, picture)
            catalogue.admit(connection, staged, everybody=False)
            return {**plan, "staged_oid": catalogue.oid_of(connection, staged)}

    @contextmanager
    def opened(self, staged: Evidence) -> Iterator[str]:
        """Yield the URL of the staged database, which is shut before and after."""
        with self._maintenance() as connection:
            name = catalogue.name_by(connection, int(staged["staged_oid"]))
            if not name:
                raise Refused(f"the staged database {staged['staged']} is gone", self._database, "restore again")
            catalogue.admit(connection, name, everybody=True)
            try:
                yield with_name(self._ground.url, name)
            except BaseException as error:
                try:
                    self._shut(connection, name)
                except Exception as second:  # noqa: BLE001 - whatever it is, the first error is the one to hear of
                    error.add_note(f"{name} could not be shut again: {second}")
                raise
            self._shut(connection, name)

    def shut_out(self) -> None:
        """Let nobody connect to the live database, and end every session on it, our own too."""
        with self._maintenance() as connection:
            catalogue.admit(connection, self._database, everybody=False)
            catalogue.empty(connection, self._database)

    def let_in(self) -> None:
        """Let clients connect to the live database; the displaced one stays shut."""
        with self._maintenance() as connection:
            catalogue.admit(connection, self._database, everybody=True)

    def switch(self, staged: Evidence) -> None:
        """Rename the live database away and the staged one in, in one transaction. Clients of both are ended."""
        self._exchange(incoming=(int(staged["staged_oid"]), str(staged["staged"])),
                       outgoing=(int(staged["live_oid"]), str(staged["old"])))

    def switch_back(self, staged: Evidence) -> None:
        """Undo `switch`; the staged database gets its name aside back."""
        if staged["staged_oid"]:
            self._exchange(incoming=(int(staged["live_oid"]), str(staged["old"])),
                           outgoing=(int(staged["staged_oid"]), str(staged["staged"])))

    def displaced(self, staged: Evidence) -> Evidence:
        """Shut the displaced database for good and name it."""
        oid = int(staged["live_oid"])
        with self._maintenance() as connection:
            name = catalogue.name_by(connection, oid)
            if name != staged["old"]:
                raise Refused("nothing was displaced", self._database, "lych-checkpoint recover")
            catalogue.admit(connection, name, everybody=False)
        return {"form": "database", "database": name, "oid": oid}

    def discard_stage(self, staged: Evidence) -> None:
        """Drop the staged database, unless it is live."""
        with self._maintenance() as connection:
            oid = int(staged["staged_oid"]) or catalogue.oid_of(connection, str(staged["staged"]))
            self._drop(connection, oid)

    def discard(self, evidence: Evidence) -> None:
        """Drop a safety copy; an archive lies in the checkpoint's own directory."""
        if evidence["form"] == "database":
            with self._maintenance() as connection:
                self._drop(connection, int(evidence["oid"]))

    def standing(self) -> list[str]:
        """Return what is odd about the live server: nothing can be, the URL leads to it by name."""
        return []

    def _exchange(self, incoming: tuple[int, str], outgoing: tuple[int, str]) -> None:
        """Give the live name to ``incoming`` (oid, name aside) and the name aside to ``outgoing``."""
        live = self._database
        with self._maintenance() as connection:
            names = (catalogue.name_by(connection, incoming[0]), catalogue.name_by(connection, outgoing[0]))
            switched = names == (live, outgoing[1])
            if not switched and names != (incoming[1], live):
                raise Refused(f"the databases of this restore are now called {names[0] or 'gone'} and "
                              f"{names[1] or 'gone'}", live, "rename them by hand", "databases-moved")
            try:
                if not switched:
                    # Shut both, else somebody connects between the last look and the rename.
                    for name in names:
                        catalogue.admit(connection, name, everybody=False)
                    catalogue.rename_both(connection, (live, outgoing[1]), (incoming[1], live))
            finally:  # after a kill too, which may have come between the renames and this
                catalogue.admit(connection, live, everybody=True)

    def _drop(self, connection: Connection, oid: int) -> None:
        name = catalogue.name_by(connection, oid)
        if name and name != self._database:
            catalogue.drop(connection, name)

    def _shut(self, connection: Connection, name: str) -> None:
        """Let nobody connect to the database ``name``, unless it is live."""
        if name != self._database:
            catalogue.admit(connection, name, everybody=False)

    def _size_bytes(self, name: str) -> int:
        with self._maintenance() as connection:
            return catalogue.size_bytes(connection, name)

    def _server(self) -> Server:
        with connect(self._ground.url) as connection, speaking(connection):
            return describe(connection)

    @contextmanager
    def _maintenance(self) -> Iterator[Connection]:
        with catalogue.maintenance(self._ground.url) as connection, speaking(connection):
            yield connection

    def _open_dump(self) -> tuple[Dumping, Path]:
        if self._dumping is None or self._into is None:
            raise RuntimeError("prepare was not called")
        return self._dumping, self._into
