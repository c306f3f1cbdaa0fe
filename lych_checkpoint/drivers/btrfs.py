"""Btrfs: the whole cluster by one read-only snapshot of PGDATA's subvolume, see `aside`."""

from __future__ import annotations

from pathlib import Path

from lych_checkpoint.database import connect, speaking
from lych_checkpoint.database.server import Server, checkpoint_now
from lych_checkpoint.drivers import btrfs_calls, fstab, kernel
from lych_checkpoint.drivers.aside import Aside
from lych_checkpoint.drivers.base import Evidence, Ground, Unfit
from lych_checkpoint.drivers.cluster import writable_beside
from lych_checkpoint.drivers.shelf import evidence_of
from lych_checkpoint.drivers.subvolumes import Subvolumes
from lych_checkpoint.process import Owner


class BtrfsDriver(Aside[Subvolumes]):
    """A snapshot ioctl in the window; exchange of two subvolumes at the restore."""

    name = "btrfs"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground, Subvolumes)

    def no_place(self, pgdata: Path) -> Unfit | None:
        """Return None, or why no snapshot can be taken of ``pgdata`` or exchanged with it."""
        with kernel.directory(pgdata) as top, kernel.directory(pgdata.parent) as parent:
            try:
                mine = btrfs_calls.file_system(top)
            except OSError:
                return Unfit(f"{pgdata} is on no Btrfs", "LYCH_DRIVER=reflink on XFS, else pitr or dump; or a new "
                             "cluster on a Btrfs: lych-checkpoint init --pgdata PATH, then initdb")
            if not btrfs_calls.is_subvolume(top):
                return Unfit(f"{pgdata} is no subvolume of its own",
                             f"stop the server; mv {pgdata} {pgdata}.old; lych-checkpoint init --pgdata {pgdata} "
                             f"--owner {Owner.of(pgdata)}; cp -a {pgdata}.old/. {pgdata}/")
            if kernel.is_mount_point(pgdata):
                below = pgdata / "data"
                return Unfit(f"{pgdata} is a mount point, which cannot be exchanged",
                             f"stop the server; lych-checkpoint init --pgdata {below} --owner {Owner.of(pgdata)}; "
                             f"move all the rest of {pgdata} into it")
            try:
                beside = btrfs_calls.file_system(parent)
            except OSError:
                beside = ""
            if beside != mine:
                return Unfit(f"{pgdata.parent} is not on the same Btrfs as {pgdata}",
                             f"put PGDATA below the mount point, by lych-checkpoint init --pgdata {pgdata / 'data'}")
            # A kernel before 4.18, or a sandbox, says no here and not in the window.
            number = btrfs_calls.info(top).number
        if point := fstab.by_number(mine, number):
            return Unfit(f"/etc/fstab mounts it on {point} by its number: a reboot would undo a restore",
                         f"write subvol=PATH in place of subvolid={number}")
        return writable_beside(pgdata)

    def _ready(self, checkpoint: str) -> None:
        """CHECKPOINT and flush, so that the snapshot has little to write and its restore little to recover."""
        shelf = self._shelf()
        shelf.make()
        shelf.need_room()
        with connect(self._ground.url) as connection, speaking(connection):
            checkpoint_now(connection)
        shelf.sync()
        self._begin(checkpoint)

    def _take(self) -> None:
        """Take the snapshot."""
        self._shelf().take(self._taking)

    def _finish(self) -> Evidence:
        """Flush, and write down the snapshot's identity."""
        shelf = self._shelf()
        shelf.sync()
        return evidence_of(shelf, self._taking)

    def _warnings(self, server: Server) -> list[str]:
        warnings = super()._warnings(server)
        with kernel.directory(self._shelf().pgdata) as pgdata:
            if not kernel.is_no_cow(pgdata):
                warnings.append("PGDATA has no +C (it takes effect only before initdb): slower writes")
        return warnings
