"""The vault's directories: sealed checkpoints, those in the making, and the files beside them."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import Away, Damage, Refused
from lych_checkpoint.manifest import Manifest
from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.records import RELEASE, VERSION, canonical, digest, load_record
from lych_checkpoint.vault import lineage, names, rows
from lych_checkpoint.vault.files import flush_directory, flush_tree, write_atomic, writing
from lych_checkpoint.vault.quarantine import Quarantine

logger = logging.getLogger(__name__)

_FOLDERS = ("checkpoints", "keys", "notes", "run")
_PARTIAL = ".partial"
_SWEPT = ".swept.partial"
_REHEARSALS = "notes/rehearsals.json"
_ID = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{6}")


class Vault:
    """One vault. A directory below ``checkpoints`` is a checkpoint only when it has a seal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checkpoints = root / "checkpoints"
        self._lineage = root / "lineage"
        self.quarantine = Quarantine(root / "quarantine")

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
            with suppress(PermissionError):  # an administrator's directory, which was there before us
                flush_directory(self.root.parent)

    def open(self) -> None:
        """Make sure that the vault is there and can be written.

        Raises:
            Away: it is not there, or was never set up.
            Refused: it cannot be written, or has no room.
        """
        with writing(self.root):
            there = all((self.root / name).is_dir() for name in _FOLDERS)
        if not there:
            raise self._absent("there is no vault")
        write_atomic(self.root / "run" / "probe", b"x" * 4096)

    def new_id(self, now: datetime) -> str:
        """Return an id that sorts by time, and that no other call will return."""
        return f"{now.astimezone(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"

    @contextmanager
    def partial(self, checkpoint_id: str) -> Iterator[Path]:
        """Give a directory with ``body`` and ``soul`` in it that `publish` makes a checkpoint; removed on error.

        The caller holds the lock: what a killed attempt at the same id left is removed first.
        """
        folder = self._checkpoints / (checkpoint_id + _PARTIAL)
        with writing(folder):
            if folder.exists():
                shutil.rmtree(folder)
            for path in (folder, folder / "body", folder / "soul"):
                path.mkdir(mode=0o700)
            hand_over(folder, owner_of(self._checkpoints))  # now, or its owner could not remove what a kill leaves
        try:
            with writing(folder):
                yield folder
        except BaseException as error:
            try:
                shutil.rmtree(folder)
            except OSError as second:
                error.add_note(f"{folder} could not be removed: {second}; the next create removes it")
            raise

    def sweep(self, let_go: Callable[[str], object]) -> list[str]:
        """Remove what earlier attempts left; the caller holds the lock, so nobody works in it. Returns the names.

        Renamed first: an attempt that lost the lock and does not know it yet can then publish nothing half removed.

        Args:
            let_go: is called with each attempt's id, and lets go of what is kept for it elsewhere.
        """
        left = sorted(self._checkpoints.glob("*" + _PARTIAL))
        for folder in left:
            logger.warning("Removing %s, left by an attempt that died", folder, extra={"event": "vault.swept"})
            with writing(folder):
                swept = folder.with_name(folder.name.removesuffix(_SWEPT) + _SWEPT)
                folder.rename(swept)
                let_go(folder.name.partition(_PARTIAL)[0])
                shutil.rmtree(swept)
        return [folder.name for folder in left]

    def publish(self, checkpoint_id: str) -> None:
        """Make a sealed partial directory a checkpoint: all of it durable, then one rename, then that durable.

        When the last step fails the rename is taken back: the caller will drop what the checkpoint refers to.
        """
        folder, goal = self._checkpoints / (checkpoint_id + _PARTIAL), self.path(checkpoint_id)
        with writing(folder):
            hand_over(folder, owner_of(self._checkpoints))
            flush_tree(folder)
            folder.rename(goal)
            try:
                flush_directory(self._checkpoints)
            except BaseException:
                goal.rename(folder)
                raise

    def path(self, checkpoint_id: str) -> Path:
        """Return the directory of a checkpoint."""
        return self._checkpoints / checkpoint_id

    def ids(self) -> list[str]:
        """Return the ids of all sealed checkpoints, oldest first."""
        try:
            found = os.listdir(self._checkpoints)
        except OSError as error:
            raise self._absent(f"the vault cannot be read: {error.strerror}") from error
        return sorted(name for name in found if not name.endswith(_PARTIAL) and self._is_sealed(name))

    def _is_sealed(self, name: str) -> bool:
        return os.path.exists(f"{self._checkpoints}/{name}/seal")  # a long list has no time for Path objects

    def _absent(self, what: str) -> Away:
        return Away(what, str(self.root), "mount it or set LYCH_VAULT; a new one: `lych-checkpoint init`",
                    "vault-away")

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

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the JSON object of every checkpoint that can be read, by id, oldest first."""
        return rows.rows(self.root / "notes" / "list.cache", self._checkpoints, self.ids(), self.manifest)

    def rehearsals(self) -> dict[str, dict[str, Any]]:
        """Return what the last rehearsal of each checkpoint came to, by id."""
        record = self.read_record(_REHEARSALS)
        return dict(record["rehearsals"]) if record else {}

    def note_rehearsal(self, checkpoint_id: str, said: dict[str, Any]) -> None:
        """Keep what a rehearsal came to, beside the checkpoint; the caller holds the lock."""
        kept = set(self.ids())
        known = {**self.rehearsals(), checkpoint_id: said}
        write_atomic(self.root / _REHEARSALS, canonical({
            "version": VERSION, "release": RELEASE,
            "rehearsals": {one: what for one, what in known.items() if one in kept}}))

    def resolve(self, name: str) -> Manifest:
        """Return the checkpoint that an id, a unique prefix, `latest`, `latest~2` or a label names.

        Raises:
            UnknownName: none or several fit.
            Damage: its manifest cannot be read, or its seal is gone.
        """
        ids = self.ids()
        if name not in ids and _ID.fullmatch(name) and self.path(name).is_dir():
            raise Damage("its seal is missing", name, "restore another checkpoint, or copy this one back",
                         "seal-missing")
        return self.manifest(names.resolve(name, ids, self.manifest, self._labels))

    def _labels(self) -> dict[str, str]:
        return {one: row["label"] for one, row in self.rows().items() if row["label"]}

    def last_seal(self) -> str:
        """Return the digest of the newest checkpoint's seal, empty if there is none."""
        ids = self.ids()
        return digest((self.path(ids[-1]) / "seal").read_bytes()) if ids else ""

    def has_seal(self, wanted: str) -> bool:
        """Whether one of the checkpoints here bears the seal of this digest."""
        return any(digest((self.path(one) / "seal").read_bytes()) == wanted for one in reversed(self.ids()))

    def last_bundles(self) -> Path | None:
        """Return the directory of the newest checkpoint's bundles, which later ones build on; None without one."""
        ids = self.ids()
        return self.path(ids[-1]) / "body" if ids else None

    def append_lineage(self, kind: str, generation: int, signature: str, **more: str | int) -> None:
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
        if known is None:
            record = {"version": VERSION, "release": RELEASE, "federation": federation, "uuid": uuid}
            write_atomic(self.root / "federation.json", canonical(record))
        elif (known["federation"], known["uuid"]) != (federation, uuid):
            raise Refused(f"this vault belongs to the federation {known['federation']!r} ({known['uuid']})",
                          str(self.root), "set LYCH_VAULT or LYCH_DATABASE_URL to the pair that belongs together",
                          "foreign-vault")

    def read_federation(self) -> dict[str, Any] | None:
        """Return ``federation`` and ``uuid``, or None where nothing was set up."""
        record = self.read_record("federation.json")
        if record is not None and not {"federation", "uuid"} <= set(record):
            raise Damage("federation or uuid is missing", str(self.root / "federation.json"),
                         "restore the file from a copy", "malformed")
        return record

    def read_record(self, name: str) -> dict[str, Any] | None:
        """Read one of the vault's JSON records; None if it is not there.

        Raises:
            Damage: it is no record, or a newer release wrote it.
            Away: it cannot be read.
        """
        path = self.root / name
        try:
            return load_record(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Away(f"cannot be read: {error.strerror}", str(path), "run as the vault's owner",
                       "vault-away") from error
