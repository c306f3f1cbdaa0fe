"""What drivers share whose copies of the whole cluster lie beside PGDATA.

Copies lie in `.lych-<name>/<checkpoint>`. A restore makes a writable copy there, runs it on a private socket until it
has recovered, and exchanges it with PGDATA while the server is stopped. Copies are told apart by an identity that an
exchange does not change, so every step knows after a kill whether it was done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from lych_checkpoint.database import connect, host_and_name, losses, speaking
from lych_checkpoint.database.address import is_local
from lych_checkpoint.database.server import Server, describe, system_identifier
from lych_checkpoint.drivers import claims, kernel, pages
from lych_checkpoint.drivers.base import Evidence, Ground, Unfit
from lych_checkpoint.drivers.cluster import major_of, unfit
from lych_checkpoint.drivers.postmaster import Postmaster
from lych_checkpoint.drivers.programs import need
from lych_checkpoint.drivers.shelf import Kept, Shelf, copying, evidence_of
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner

S = TypeVar("S", bound=Shelf)


class Aside(ABC, Generic[S]):
    """All of a driver but how the copy is taken. ``S`` is the kind of shelf, made by ``make_shelf``."""

    name: str
    #: Whether a restored copy begins a new timeline, which nobody takes for the old one.
    forks = False

    def __init__(self, ground: Ground, make_shelf: Callable[[Path], S]) -> None:
        self._ground = ground
        self._make_shelf = make_shelf
        self._shelf_known: S | None = None
        self._taking = self._links = ""
        self._claim: claims.Claim | None = None

    @abstractmethod
    def no_place(self, pgdata: Path) -> Unfit | None:
        """Return None, or why this driver cannot copy ``pgdata`` where it stands."""

    # The steps of a driver: `_ready` calls `_begin` before it makes anything of the checkpoint's own.
    @abstractmethod
    def _ready(self, checkpoint: str) -> None: ...

    @abstractmethod
    def _take(self) -> None: ...

    @abstractmethod
    def _finish(self) -> Evidence: ...

    def prepare(self, checkpoint: str, into: Path) -> None:  # noqa: ARG002 - nothing lies in the vault
        """Do before the freeze all that can be done. Refused where there is no room; so are the next two."""
        self._links = self._shelf().links()
        with copying(self._shelf().path):
            self._ready(checkpoint)

    def capture(self) -> None:
        """Take the instant."""
        with copying(self._shelf().path):
            self._take()

    def finish(self) -> Evidence:
        """Make the copy durable, and write down its identity.

        Raises:
            Refused: a tablespace came or went since `prepare` (code ``tablespace``): a recovery would make it again,
                in the live place or in one that is gone.
        """
        with copying(self._shelf().path):
            evidence = self._finish()
        if self._links != self._shelf().links():
            raise Refused("a tablespace came or went during the capture", str(self._shelf().pgdata / "pg_tblspc"),
                          "create again", "tablespace")
        return evidence

    def recovery(self, staged: Evidence) -> dict[str, str]:  # noqa: ARG002 - for those that have some
        """Return the settings with which staged data recover: none where they stop at the end of their WAL."""
        return {}

    def generation(self, shelf: S, name: str) -> int:
        """Return a number that every change of what the copy ``name`` consists of changes."""
        return shelf.generation(name)

    def unfold(self, shelf: S, name: str, writable: str) -> Kept:
        """Make a writable copy of ``name``, on which a server can recover."""
        return shelf.unfold(name, writable)

    def probe(self) -> Unfit | None:
        """Return None, or why this cluster cannot be captured as files. Raises Away if the server is not there."""
        with connect(self._ground.url) as connection, speaking(connection):
            server, identifier = describe(connection), system_identifier(connection)
        if not is_local(self._ground.url):
            return Unfit("the server is on another machine", "LYCH_DRIVER=dump, or run it on that machine")
        pgdata = self._ground.pgdata or (Path(server.data_directory) if server.data_directory else None)
        if pgdata is None:
            return Unfit(f"role {server.role} may not see data_directory", "set LYCH_PGDATA")
        return unfit(server, identifier, pgdata.resolve(), self._ground.pg_bin, self.no_place)

    def preflight(self) -> list[str]:
        """Refuse what a restored copy would lose; warn of what it brings back besides, and to whom it does not."""
        with connect(self._ground.url) as connection, speaking(connection):
            losses.refuse(connection)
            outside = losses.readers(connection, forks=self.forks)
            server = describe(connection)
        if nested := kernel.nested(self._shelf().pgdata):
            raise Refused(f"{nested[0]} is a file system of its own, which no copy of PGDATA holds",
                          host_and_name(self._ground.url),
                          "move it into PGDATA's file system, or LYCH_DRIVER=dump", "nested-subvolume")
        return self._warnings(server) + outside

    def keep(self) -> None:
        """Keep the copy: its checkpoint is sealed."""
        if self._claim is not None:
            self._claim.end(keep=True)

    def abort(self) -> None:
        """Remove the copy, if it was begun."""
        if self._claim is not None:
            self._claim.end(keep=False)

    def begun(self) -> dict[str, str]:
        """Return the copies of ours whose makers died before `keep`, by checkpoint, with their driver."""
        return claims.begun(self._shelf(), self._ground.owner) if is_local(self._ground.url) else {}

    def take_back(self, checkpoint: str, *, sealed: bool) -> None:
        """Remove a copy that a dead maker left; of a sealed checkpoint only its mark."""
        claims.take_back(self._shelf(), checkpoint, self.name, self._ground.owner,
                         None if sealed else lambda: self._remove(checkpoint))

    def verify(self, evidence: Evidence, folder: Path, *, deep: bool = False) -> list[str]:
        """Compare the copy's identity; with ``deep`` recover a copy of it and check every page's checksum."""
        shelf = self._shelf_of(evidence)
        path = shelf.path / str(evidence["snapshot"])
        if (found := shelf.find(str(evidence["snapshot"]))) is None:
            return [f"the copy {path} is gone"]
        damages = []
        if found.uuid != evidence["uuid"]:
            damages.append(f"{path} is another copy than the one that was sealed")
        elif not found.read_only:
            damages.append(f"{path} was made writable")
        elif self.generation(shelf, str(evidence["snapshot"])) != evidence["generation"]:
            damages.append(f"{path} changed since it was sealed")
        if not damages and deep:
            damages += pages.damages(self, shelf, evidence, folder, self._ground.pg_bin)
        return damages

    def plan_stage(self, evidence: Evidence, ticket: str) -> Evidence:
        """Name the copy of this restore; changes nothing."""
        shelf = self._shelf_of(evidence)
        with connect(self._ground.url) as connection, speaking(connection):
            config = describe(connection).config_file
        outside = config if config and not Path(config).resolve().is_relative_to(shelf.pgdata) else ""
        return {
            "pgdata": str(shelf.pgdata), "config_file": outside, "live_uuid": shelf.live().uuid,
            "stage": f"stage-{ticket}", "uuid": "", "displaced": f"displaced-{ticket}",
        }

    def stage(self, evidence: Evidence, folder: Path, ticket: str) -> Evidence:  # noqa: ARG002 - nothing lies there
        """Make a writable copy aside. What an earlier try of this ticket left is made anew."""
        plan, shelf = self.plan_stage(evidence, ticket), self._shelf_of(evidence)
        noted = shelf.noted(name := str(plan["stage"]))
        if noted is not None and shelf.live().uuid == noted["uuid"]:
            raise Refused(f"restore {ticket} was switched already", str(shelf.pgdata), "lych-checkpoint recover")
        with copying(shelf.path):
            self._clear(shelf, name)
            made = self.unfold(shelf, str(evidence["snapshot"]), name)
            # What lies under this name after the switch is the displaced data: only the note tells it from a stage.
            shelf.note(name, {"uuid": made.uuid})
        return {**plan, "uuid": made.uuid}

    @contextmanager
    def opened(self, staged: Evidence) -> Iterator[str]:
        """Run the staged data on a private socket; recovered on entry, stopped cleanly on exit."""
        shelf = self._shelf_of(staged)
        found = shelf.find(str(staged["stage"]))
        if found is None or found.uuid != staged["uuid"]:
            raise Refused("the staged data are not there", str(shelf.path / str(staged["stage"])), "restore again")
        server = self._postmaster(shelf.path / str(staged["stage"]), str(staged["config_file"]))
        with server.private(self._ground.url, self.recovery(staged)) as url:
            yield url
        shelf.sync()

    def shut_out(self) -> None:
        """Do nothing: `switch` stops the server, and what others write until then is kept whole in the displaced."""

    def let_in(self) -> None:
        """Do nothing: a started server takes connections."""

    def switch(self, staged: Evidence) -> None:
        """Stop the server, exchange, start."""
        self._exchange(staged, str(staged["uuid"]))

    def switch_back(self, staged: Evidence) -> None:
        """Undo `switch`; the staged data stay as they are now."""
        shelf = self._shelf_of(staged)
        kept = shelf.find(str(staged["displaced"]))
        if kept is not None and kept.uuid == staged["live_uuid"]:
            shelf.close(str(staged["displaced"]), read_only=False)
            shelf.move(str(staged["displaced"]), str(staged["stage"]))
        self._exchange(staged, str(staged["live_uuid"]))

    def displaced(self, staged: Evidence) -> Evidence:
        """Close the displaced data under a name of their own: kept whole, and not a byte copied."""
        shelf, name = self._shelf_of(staged), str(staged["displaced"])
        if shelf.find(name) is None:
            found = shelf.find(str(staged["stage"]))
            if found is None or found.uuid != staged["live_uuid"]:
                raise Refused("nothing was displaced", str(shelf.path), "lych-checkpoint recover")
            shelf.move(str(staged["stage"]), name)
        shelf.close(name, read_only=True)
        shelf.forget(str(staged["stage"]))
        return evidence_of(shelf, name)

    def discard_stage(self, staged: Evidence) -> None:
        """Remove staged data; displaced data under the same name are left alone."""
        shelf, name = self._shelf_of(staged), str(staged["stage"])
        if (found := shelf.find(name)) is not None and found.uuid != staged["live_uuid"]:
            self._clear(shelf, name)

    def discard(self, evidence: Evidence) -> None:
        """Remove a checkpoint's copy, and what a killed check of it left."""
        shelf, name = self._shelf_of(evidence), str(evidence["snapshot"])
        self._clear(shelf, f"stage-{pages.ticket(name)}")
        shelf.remove(name)

    def standing(self) -> list[str]:
        """Return what is odd about the live server: it must run in PGDATA as it is now, and say so."""
        shelf = self._shelf()
        with connect(self._ground.url) as connection, speaking(connection):
            said = describe(connection).data_directory
        odd = [f"the server runs in {said}, not in {shelf.pgdata}"
               ] if said and Path(said).resolve() != shelf.pgdata else []
        if not self._postmaster(shelf.pgdata).users():
            odd.append(f"no process works in {shelf.pgdata}")
        return odd

    def _warnings(self, server: Server) -> list[str]:
        others = losses.neighbours(self._ground.url, server.neighbours)
        what = f"{self.name} captures the whole cluster: {', '.join(others)} come back too"
        return [f"{what}, their sequences may skip values and their UNLOGGED tables come back empty"
                ] if others else []

    def _exchange(self, staged: Evidence, wanted: str) -> None:
        shelf, config, stage = self._shelf_of(staged), str(staged["config_file"]), str(staged["stage"])
        live = self._postmaster(shelf.pgdata, config)
        if shelf.live().uuid != wanted:
            aside = shelf.find(stage)
            if aside is None or aside.uuid != wanted:
                raise Refused(f"the copy {wanted} is not there", str(shelf.path), "lych-checkpoint recover")
            self._postmaster(shelf.path / stage, config).stop()
            live.stop()
            shelf.swap(stage)
        live.start(shelf.path / "server.log")

    def _clear(self, shelf: S, name: str) -> None:
        if shelf.find(name) is not None:
            # A killed try may have left its private server, or a copy that has no version and no owner yet.
            self._postmaster(shelf.path / name, like=shelf.pgdata).stop()
            shelf.remove(name)
        shelf.forget(name)

    def _remove(self, checkpoint: str) -> None:
        self._shelf().remove(checkpoint)

    def _begin(self, checkpoint: str) -> None:
        """Mark the copy that is about to be made, so that whoever comes after a kill knows of it."""
        self._claim = claims.claim(self._shelf(), checkpoint, self.name, self._ground.owner)
        self._taking = checkpoint

    def _postmaster(self, pgdata: Path, config_file: str = "", like: Path | None = None) -> Postmaster:
        like = like or pgdata
        control = self._ground.control if pgdata == self._shelf().pgdata else "pg_ctl"
        return Postmaster(pgdata=pgdata, owner=Owner.of(like), config_file=config_file, control=control,
                          pg_ctl=need("pg_ctl", self._ground.pg_bin, major_of(like)))

    def _shelf(self) -> S:
        if self._shelf_known is None:
            pgdata = self._ground.pgdata
            if pgdata is None:
                with connect(self._ground.url) as connection, speaking(connection):
                    pgdata = Path(describe(connection).data_directory)
            self._shelf_known = self._make_shelf(pgdata.resolve())
        return self._shelf_known

    def _shelf_of(self, evidence: Evidence) -> S:
        # From the evidence, so that a restore goes on while the server is stopped and cannot be asked.
        pgdata = Path(str(evidence["pgdata"]))
        self._shelf_known = self._shelf_known or self._make_shelf(pgdata)
        if self._shelf_known.pgdata != pgdata:
            raise Refused(f"this checkpoint is of the cluster in {pgdata}", str(self._shelf_known.pgdata),
                          "set LYCH_PGDATA", "other-pgdata")
        return self._shelf_known
