"""The directory beside PGDATA where its snapshots lie: `.lych-<name>`, closed to everyone but PGDATA's owner."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lych_checkpoint.drivers import btrfs_calls
from lych_checkpoint.drivers.btrfs_calls import Subvolume
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner


@dataclass(frozen=True, slots=True)
class Shelf:
    """Subvolumes by name beside one PGDATA; ``pgdata`` has no symlinks in it."""

    pgdata: Path

    @property
    def path(self) -> Path:
        """Where the subvolumes lie."""
        return self.pgdata.parent / f".lych-{self.pgdata.name}"

    def make(self) -> None:
        """Make the directory, PGDATA's owner's, mode 0700."""
        with btrfs_calls.directory(self.pgdata.parent) as parent:
            try:
                os.mkdir(self.path.name, 0o700, dir_fd=parent)
            except FileExistsError:
                return
            owner = Owner.of(self.pgdata)
            os.chown(self.path.name, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=False)

    def live(self) -> Subvolume:
        """Return the subvolume that is PGDATA now."""
        with btrfs_calls.directory(self.pgdata) as descriptor:
            return btrfs_calls.info(descriptor)

    def find(self, name: str) -> Subvolume | None:
        """Return the subvolume ``name``, or None if there is none."""
        try:
            with self._opened() as shelf, btrfs_calls.directory(name, inside=shelf) as descriptor:
                return btrfs_calls.info(descriptor)
        except FileNotFoundError:
            return None

    def take(self, name: str) -> None:
        """Snapshot PGDATA read-only as ``name``."""
        with self._opened() as shelf, btrfs_calls.directory(self.pgdata) as live:
            btrfs_calls.snapshot(live, shelf, name, read_only=True)

    def unfold(self, name: str, writable: str) -> Subvolume:
        """Snapshot ``name`` writable, without the lock files that a running server left in it."""
        with self._opened() as shelf:
            with btrfs_calls.directory(name, inside=shelf) as source:
                btrfs_calls.snapshot(source, shelf, writable, read_only=False)
            with btrfs_calls.directory(writable, inside=shelf) as made:
                for stale in ("postmaster.pid", "postmaster.opts"):
                    if stale in os.listdir(made):
                        os.unlink(stale, dir_fd=made)
                btrfs_calls.sync(made)
                return btrfs_calls.info(made)

    def swap(self, name: str) -> None:
        """Exchange PGDATA and ``name``; durable when it returns."""
        with btrfs_calls.directory(self.pgdata.parent) as parent, self._opened() as shelf:
            btrfs_calls.exchange((parent, self.pgdata.name), (shelf, name))
            os.fsync(parent)
            os.fsync(shelf)
            btrfs_calls.sync(shelf)

    def move(self, name: str, to: str) -> None:
        """Rename a subvolume of the shelf; durable when it returns."""
        with self._opened() as shelf:
            os.rename(name, to, src_dir_fd=shelf, dst_dir_fd=shelf)
            btrfs_calls.sync(shelf)

    def close(self, name: str, *, read_only: bool) -> Subvolume:
        """Set or clear the read-only flag of ``name``; durable when it returns."""
        with self._opened() as shelf, btrfs_calls.directory(name, inside=shelf) as descriptor:
            if btrfs_calls.info(descriptor).read_only != read_only:
                btrfs_calls.set_read_only(descriptor, read_only=read_only)
                btrfs_calls.sync(descriptor)
            return btrfs_calls.info(descriptor)

    def remove(self, name: str) -> None:
        """Remove the subvolume ``name``; gone already is gone."""
        if self.find(name) is not None:
            with self._opened() as shelf:
                btrfs_calls.destroy(shelf, name)

    def sync(self) -> None:
        """Bring the file system onto the disk."""
        with btrfs_calls.directory(self.pgdata) as descriptor:
            btrfs_calls.sync(descriptor)

    def note(self, name: str, facts: dict[str, Any]) -> None:
        """Remember ``facts`` under ``name``; durable when it returns."""
        with self._opened() as shelf:
            descriptor = os.open(f"{name}.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600,
                                 dir_fd=shelf)
            with os.fdopen(descriptor, "w") as file:
                json.dump(facts, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{name}.json.new", f"{name}.json", src_dir_fd=shelf, dst_dir_fd=shelf)
            os.fsync(shelf)

    def noted(self, name: str) -> dict[str, Any] | None:
        """Return what was noted under ``name``, or None."""
        try:
            with self._opened() as shelf:
                descriptor = os.open(f"{name}.json", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=shelf)
                with os.fdopen(descriptor) as file:
                    return dict(json.load(file))
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """Drop what was noted under ``name``."""
        try:
            with self._opened() as shelf:
                os.unlink(f"{name}.json", dir_fd=shelf)
        except FileNotFoundError:
            return

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with btrfs_calls.directory(self.pgdata.parent) as parent, \
                btrfs_calls.directory(self.path.name, inside=parent) as shelf:
            stat = os.fstat(shelf)
            if stat.st_mode & 0o077 or stat.st_uid not in (0, os.geteuid(), Owner.of(self.pgdata).uid):
                raise Refused("others may write here", str(self.path), f"chmod 0700 {self.path}", "open-shelf")
            yield shelf
