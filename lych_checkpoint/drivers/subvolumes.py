"""Btrfs subvolumes on the shelf: copies in one ioctl, told apart by uuid, which an exchange does not change."""

from __future__ import annotations

import os
import shutil

from lych_checkpoint.drivers import btrfs_calls, kernel
from lych_checkpoint.drivers.btrfs_calls import Subvolume
from lych_checkpoint.drivers.shelf import SLOTS, STALE, Shelf, is_outsiders


class Subvolumes(Shelf):
    """Snapshots of a PGDATA that is a subvolume."""

    __slots__ = ()

    def live(self) -> Subvolume:
        """Return the subvolume that is PGDATA now."""
        with kernel.directory(self.pgdata) as descriptor:
            return btrfs_calls.info(descriptor)

    def find(self, name: str) -> Subvolume | None:
        """Return the subvolume ``name``, or None if there is none."""
        try:
            with self.opened() as shelf, kernel.directory(name, inside=shelf) as descriptor:
                return btrfs_calls.info(descriptor)
        except FileNotFoundError:
            return None

    def generation(self, name: str) -> int:
        """Return the transaction that last changed something in the subvolume."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as descriptor:
            return btrfs_calls.info(descriptor).generation

    def take(self, name: str) -> None:
        """Snapshot PGDATA read-only as ``name``."""
        with self.opened() as shelf, kernel.directory(self.pgdata) as live:
            btrfs_calls.snapshot(live, shelf, name, read_only=True)

    def unfold(self, name: str, writable: str) -> Subvolume:
        """Snapshot ``name`` writable, without a running server's lock files and without others' slots."""
        with self.opened() as shelf:
            with kernel.directory(name, inside=shelf) as source:
                btrfs_calls.snapshot(source, shelf, writable, read_only=False)
            with kernel.directory(writable, inside=shelf) as made:
                for stale in STALE:
                    if stale in os.listdir(made):
                        os.unlink(stale, dir_fd=made)
                with kernel.directory(SLOTS, inside=made) as slots:
                    for slot in filter(is_outsiders, os.listdir(slots)):
                        shutil.rmtree(slot, dir_fd=slots)
                kernel.sync(made)
                return btrfs_calls.info(made)

    def close(self, name: str, *, read_only: bool) -> Subvolume:
        """Set or clear the read-only flag of ``name``; durable when it returns."""
        with self.opened() as shelf, kernel.directory(name, inside=shelf) as descriptor:
            if btrfs_calls.info(descriptor).read_only != read_only:
                btrfs_calls.set_read_only(descriptor, read_only=read_only)
                kernel.sync(descriptor)
            return btrfs_calls.info(descriptor)

    def remove(self, name: str) -> None:
        """Remove the subvolume ``name``; gone already is gone."""
        if self.find(name) is not None:
            with self.opened() as shelf:
                btrfs_calls.destroy(shelf, name)
