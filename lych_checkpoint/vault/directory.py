"""The vault's directories: sealed checkpoints, those in the making, and the files beside them."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import Away, Damage, Refused
from lych_checkpoint.manifest import RELEASE, VERSION, Manifest, canonical, check_version, digest
from lych_checkpoint.vault import lineage, names
from lych_checkpoint.vault.files import flush_directory, flush_tree, write_atomic, writing

logger = logging.getLogger(__name__)

_FOLDERS = ("checkpoints", "keys", "notes", "run")
_PARTIAL = ".partial"


class Vault:
    """One vault. A directory below ``checkpoints`` is a checkpoint only when it has a seal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checkpoints = root / "checkpoints"
        self._lineage = root / "lineage"

    def init(self) -> None:
        """Make the directories; safe to repeat.

        Raises:
            Refused, Away: they cannot be made here.
        """
        with writing(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            flush_directory(self.root)

    def open(self) -> None:
        """Make sure that the vault is there and can be written.

        Raises:
            Away: it is not there, or was never set up.
            Refused: it cannot be written, or has no room.
        """
        if not all((self.root / name).is_dir() for name in _FOLDERS):
            raise Away("there is no vault", str(self.root), "mount it or set LYCH_VAULT; a new one: `lych-checkpoint "
                       "init`", "vault-away")
        write_atomic(self.root / "run" / "probe", b"x" * 4096)

    def new_id(self, now: datetime) -> str:
        """Return an id that sorts by time and is not taken."""
        return f"{now.astimezone(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"

    @contextmanager
    def partial(self, checkpoint_id: str) -> Iterator[Path]:
        """Give a directory with ``body`` and ``soul`` in it that `publish` makes a checkpoint; removed on error."""
        folder = self._checkpoints / (checkpoint_id + _PARTIAL)
        with writing(folder):
            for path in (folder, folder / "body", folder / "soul"):
                path.mkdir(mode=0o700)
        try:
            with writing(folder):
                yield folder
        except BaseException as error:
            try:
                shutil.rmtree(folder)
            except OSError as second:
                error.add_note(f"{folder} could not be removed: {second}; the next create removes it")
            raise

    def sweep(self) -> list[str]:
        """Remove what earlier attempts left; the caller holds the lock, so nobody works in it. Returns the names."""
        left = sorted(self._checkpoints.glob("*" + _PARTIAL))
        for folder in left:
            logger.warning("Removing %s, left by an attempt that died", folder, extra={"event": "vault.swept"})
            with writing(folder):
                shutil.rmtree(folder)
        return [folder.name for folder in left]

    def publish(self, checkpoint_id: str) -> None:
        """Make a sealed partial directory a checkpoint: all of it durable, then one rename, then that durable."""
        folder = self._checkpoints / (checkpoint_id + _PARTIAL)
        with writing(folder):
            flush_tree(folder)
            folder.rename(self.path(checkpoint_id))
            flush_directory(self._checkpoints)

    def path(self, checkpoint_id: str) -> Path:
        """Return the directory of a checkpoint."""
        return self._checkpoints / checkpoint_id

    def ids(self) -> list[str]:
        """Return the ids of all sealed checkpoints, oldest first."""
        try:
            found = os.listdir(self._checkpoints)
        except OSError as error:
            raise Away(f"cannot be read: {error.strerror}", str(self._checkpoints),
                       "mount it or set LYCH_VAULT; a new one: `lych-checkpoint init`", "vault-away") from error
        return sorted(name for name in found if not name.endswith(_PARTIAL) and (self.path(name) / "seal").exists())

    def manifest(self, checkpoint_id: str) -> Manifest:
        """Read a manifest, without verifying its seal.

        Raises:
            Damage: it cannot be read.
        """
        path = self.path(checkpoint_id) / "manifest.json"
        try:
            return Manifest.loads(path.read_bytes(), str(path))
        except OSError as error:
            raise Damage(f"cannot be read: {error.strerror}", str(path), "", "malformed") from error

    def manifests(self) -> Iterator[Manifest]:
        """Give all manifests that can be read, oldest first; `verify` tells of the others."""
        for checkpoint_id in self.ids():
            try:
                yield self.manifest(checkpoint_id)
            except Damage as error:
                logger.warning("%s", error, extra={"event": "vault.damage", "checkpoint": checkpoint_id})

    def resolve(self, name: str) -> Manifest:
        """Return the checkpoint that an id, a unique prefix, `latest`, `latest~2` or a label names.

        Raises:
            UnknownName: none or several fit.
        """
        ids = self.ids()
        if name in ids:
            return self.manifest(name)
        return names.resolve(name, list(self.manifests()))

    def last_seal(self) -> str:
        """Return the digest of the newest checkpoint's seal, empty if there is none."""
        ids = self.ids()
        return digest((self.path(ids[-1]) / "seal").read_bytes()) if ids else ""

    def append_lineage(self, kind: str, generation: int, signature: str, **more: str) -> None:
        """Append a generation to the lineage, durably."""
        lineage.append(self._lineage, kind, generation, signature, **more)

    def lineage(self) -> Iterator[dict[str, Any]]:
        """Give the lineage, oldest first."""
        return lineage.records(self._lineage)

    def last_lineage(self) -> dict[str, Any] | None:
        """Return the record of the highest generation, or None."""
        return lineage.last(self._lineage)

    def write_federation(self, federation: str, uuid: str) -> None:
        """Note whose vault this is.

        Raises:
            Refused: it is another federation's.
        """
        known = self.read_federation()
        if known is not None and (known["federation"], known["uuid"]) != (federation, uuid):
            raise Refused(f"this vault belongs to the federation {known['federation']!r} ({known['uuid']})",
                          str(self.root), "set LYCH_VAULT or LYCH_DATABASE_URL to the pair that belongs together",
                          "foreign-vault")
        record = {"version": VERSION, "release": RELEASE, "federation": federation, "uuid": uuid}
        if known is None:
            write_atomic(self.root / "federation.json", canonical(record))

    def read_federation(self) -> dict[str, Any] | None:
        """Return ``federation`` and ``uuid``, or None where nothing was set up."""
        return self.read_record("federation.json")

    def read_record(self, name: str) -> dict[str, Any] | None:
        """Read one of the vault's JSON records; None if it is not there.

        Raises:
            Damage: it is no record, or a newer release wrote it.
            Away: it cannot be read.
        """
        path = self.root / name
        try:
            record = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise Damage("not a JSON record", str(path), "", "malformed") from error
        except OSError as error:
            raise Away(f"cannot be read: {error.strerror}", str(path), "run as the vault's owner",
                       "vault-away") from error
        check_version(record, str(path))
        return dict(record)
