"""The place for a new cluster that `btrfs` can capture: an empty subvolume with +C, before initdb runs in it."""

from __future__ import annotations

import os
from pathlib import Path

from lych_checkpoint.drivers import btrfs_calls, kernel
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner


def make(pgdata: Path, owner: Owner | None) -> tuple[Owner, bool]:
    """Make the subvolume, or give an empty one what it lacks. Repeated, it changes nothing.

    Args:
        pgdata: where; an empty directory there is replaced.
        owner: who will run the server; None takes the owner of the directory it is made in, and of root's this user.

    Returns:
        The owner, and whether anything was made.

    Raises:
        Refused: it would not do (code ``pgdata``), or this user may not make it (``needs-owner``).
    """
    parent = pgdata.parent.resolve()
    pgdata = parent / pgdata.name
    try:
        owner = owner or _owner(parent)
        with kernel.directory(parent) as beside:
            made = _made(pgdata, beside)
            with kernel.directory(pgdata.name, inside=beside) as top:
                made = _finished(top, owner, pgdata) or made
    except PermissionError as error:
        raise Refused(f"this user may not make it: {error.strerror}", str(pgdata), "run as root, or as the owner of "
                      f"{parent}", "needs-owner") from error
    except OSError as error:
        raise Refused(f"it cannot be made: {error.strerror}", str(pgdata), f"look at {parent}", "pgdata") from error
    return owner, made


def _owner(parent: Path) -> Owner:
    found = Owner.of(parent)
    if found.uid:
        return found
    if os.geteuid():
        return Owner(os.geteuid(), os.getegid())
    raise Refused("whose it is to be cannot be told: root runs no server", str(parent), "say --owner USER", "pgdata")


def _made(pgdata: Path, beside: int) -> bool:
    """Make sure of a subvolume of that name; return whether it was made."""
    try:
        mine = btrfs_calls.file_system(beside)
    except OSError:
        raise _refused(pgdata, f"{pgdata.parent} is on no Btrfs", "name a place below the mount of one") from None
    if pgdata.is_symlink() or (pgdata.exists() and not pgdata.is_dir()):
        raise _refused(pgdata, "it is no directory", "name a place that is free")
    if kernel.is_mount_point(pgdata):
        raise _refused(pgdata, "a mount point cannot be exchanged", f"name a place below it: {pgdata / 'data'}")
    if pgdata.exists():
        with kernel.directory(pgdata.name, inside=beside) as top:
            if btrfs_calls.is_subvolume(top) and btrfs_calls.file_system(top) == mine:
                return False
            if os.listdir(top):
                raise _refused(pgdata, "it is not empty", "name a place that is free, or move what is there away")
        os.rmdir(pgdata.name, dir_fd=beside)
    btrfs_calls.create(beside, pgdata.name)
    return True


def _finished(top: int, owner: Owner, pgdata: Path) -> bool:
    """Give an empty subvolume mode, +C and owner; return whether it lacked one."""
    found = os.fstat(top)
    if os.listdir(top):
        if not kernel.is_no_cow(top):
            raise _refused(pgdata, "it holds files without +C, which only new ones take", "name a place that is free")
        return False
    if kernel.is_no_cow(top) and (found.st_uid, found.st_mode & 0o777) == (owner.uid, 0o700):
        return False
    os.fchmod(top, 0o700)
    kernel.set_no_cow(top)
    if not owner.is_me:
        os.fchown(top, owner.uid, owner.gid)
    kernel.sync(top)
    return True


def _refused(pgdata: Path, what: str, mend: str) -> Refused:
    return Refused(what, str(pgdata), mend, "pgdata")
