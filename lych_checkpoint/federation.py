"""One federation opened for a verb: its settings, vault, Redis and ground, each made when it is first needed."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from lych_checkpoint import body, broadcast, seal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Away, Refused
from lych_checkpoint.freeze import Ring, Terms
from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.manifest import RepoPin
from lych_checkpoint.records import RELEASE
from lych_checkpoint.settings import Settings
from lych_checkpoint.vault import Vault


class Federation:
    """What all verbs start from."""

    def __init__(self, settings: Settings, uuid: str = "") -> None:
        self.settings = settings
        self.vault = Vault(settings.vault_path)
        self._uuid = uuid
        self._store: Store | None = None

    @property
    def uuid(self) -> str:
        """The federation's uuid: the vault's copy, else the witness's.

        Raises:
            Refused: neither exists; nothing was set up here yet.
        """
        if not self._uuid:
            record = self.vault.read_federation()
            if record is not None:
                self._uuid = str(record["uuid"])
            else:
                with connect(self.settings.need("database_url")) as connection:
                    known = witness.read(connection)
                if known is None:
                    raise Refused("this federation was never set up", self.settings.federation,
                                  "lych-checkpoint init", "no-federation")
                self._uuid = known.uuid
        return self._uuid

    def store(self) -> Store:
        """Return the one Redis client of this federation."""
        if self._store is None:
            self._store = Store(self.settings.need("redis_url"), self.uuid)
        return self._store

    def ground(self) -> Ground:
        """Return what the soul's drivers work on."""
        settings = self.settings
        return Ground(url=settings.need("database_url"), pgdata=settings.pgdata, pg_bin=settings.pg_bin,
                      control=settings.postgres_control, owner=str(self.vault.root.resolve()),
                      jobs=settings.dump_jobs)

    def members(self) -> tuple[body.Member, ...]:
        """Return core and extensions as they are on disk."""
        return body.discover(self.settings.root, self.settings.core, self.settings.extensions)

    def found(self) -> tuple[body.Member, ...]:
        """Return whatever stands where core and extensions should, sound or not."""
        return body.find(self.settings.root, self.settings.core, self.settings.extensions)

    def uncommitted(self) -> dict[str, body.Uncommitted | None]:
        """Return by repository what lies on top of its commit; None where that cannot be read."""
        return body.uncommitted(self.found(), self.settings.root, self.leave_out())

    def strays(self) -> list[str]:
        """Return a sentence for each repository below the root that no setting names."""
        settings = self.settings
        return [f"{path} is a repository that is neither in LYCH_EXTENSIONS nor left out of it"
                for path in body.strays(settings.root, settings.core, settings.extensions)]

    def vanished(self, known: witness.Witness) -> list[str]:
        """Return a sentence for each repository that the witness names and that is gone: a glob misses nothing."""
        there = {member.path for member in self.found()}
        return [f"{path} was a repository of the body that these data know, and is not there"
                for path in sorted(set(known.repos) - there)]

    def scanning(self, *, capture: bool = True) -> AbstractContextManager[body.Scan]:
        """Scan the body by the settings; what it watches is given up when the block ends.

        Args:
            capture: False writes nothing, where a dirty repository would be captured by the settings.
        """
        dirty = "admit" if self.settings.dirty == "capture" and not capture else self.settings.dirty
        policy = body.Policy(dirty=dirty, shadow=self.shadow, limit_bytes=self.settings.dirty_limit_bytes)
        return body.scanning(self.members(), policy, leave_out=self.leave_out(), known=self._sealed_last())

    def _sealed_last(self) -> tuple[RepoPin, ...]:
        """Return the pins of the newest checkpoint, as far as this release would make them the same."""
        try:
            last = self.vault.ids()[-1:]
        except Away:
            last = []
        lock = seal.sealed_lock(self.vault.path(last[0]), self.settings.key_path) if last else None
        return lock.repos if lock is not None and lock.release == RELEASE else ()

    @property
    def shadow(self) -> Path:
        """Where the raw trees of dirty repositories are kept."""
        return self.vault.root / "shadow"

    def leave_out(self) -> tuple[Path, ...]:
        """Return the paths that are ours even where they lie inside a repository."""
        return (self.settings.root / "lychd.lock", self.vault.root)

    def terms(self, mode: str, reason: str, *, lowest_epoch: int = 0,
              through: frozenset[tuple[str, str]] = frozenset()) -> Terms:
        """Return the terms of a freeze by the settings."""
        settings = self.settings
        drain_timeout_s = math.inf if settings.drain == "wait" else settings.drain_timeout_s
        return Terms(
            mode=mode, reason=reason, lease_s=settings.lease_s, ack_timeout_s=settings.ack_timeout_s,
            drain_timeout_s=drain_timeout_s, gone_after_s=settings.gone_after_s,
            lowest_epoch=lowest_epoch, through=through,
        )

    def check_for_strangers(self, app: Any) -> None:
        """Make sure that every worker that the broker knows is in the roster; without an app there is no broker.

        Raises:
            Refused: one is not, and would not freeze; or the broker cannot carry a broadcast.
            Away: the broker cannot be reached.
        """
        if app is None:
            return
        broadcast.check_fanout(app)
        known = {entry.name for entry in roster.entries(self.store()).values()}
        strangers = broadcast.strangers(app, known, self.uuid)
        if strangers:
            raise Refused(
                f"the worker {min(strangers)} answers ping and is not in the roster: it would not freeze",
                "workers", "start it with lych_checkpoint.install(app), or stop it", "stranger",
            )

    def ring(self, app: Any) -> Ring:
        """Return how to ring the control bell; without an app there is only the plugin's own."""
        return partial(broadcast.ring, app, self.uuid) if app is not None else lambda _act, _epoch: None
