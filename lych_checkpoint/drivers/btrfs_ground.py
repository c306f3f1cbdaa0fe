"""Whether a cluster stands on Btrfs the way a snapshot of it needs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from lych_checkpoint.database.server import Server
from lych_checkpoint.drivers import btrfs_calls
from lych_checkpoint.drivers.programs import find
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner, run

HELPER = "run as that user or as root (LYCH_HELPER is not supported yet)"


def unfit(server: Server, identifier: str, pgdata: Path, pg_bin: Path | None) -> str | None:
    """Return None, or why ``pgdata`` (without symlinks) cannot be captured by a snapshot. Raises OSError."""
    owner = Owner.of(pgdata)
    if not owner.is_me and os.geteuid() != 0:
        return f"{pgdata} belongs to {owner}: {HELPER}"
    reason = _no_subvolume(pgdata) or _other_cluster(server, identifier, pgdata) or _outside(pgdata)
    if reason is not None:
        return reason
    if not server.checksums:
        return "data checksums are off: stop the server and run pg_checksums --enable"
    if not server.checkpointer:
        return f"role {server.role} may not run CHECKPOINT: GRANT pg_checkpoint TO {server.role}"
    if server.in_recovery:
        return "the server is a standby: use its primary"
    return _no_program(owner, server.major, pg_bin)


def major_of(pgdata: Path) -> int:
    """Return the major version of the cluster."""
    return int((pgdata / "PG_VERSION").read_text().split(".")[0])


def _no_subvolume(pgdata: Path) -> str | None:
    with btrfs_calls.directory(pgdata) as top, btrfs_calls.directory(pgdata.parent) as parent:
        try:
            mine = btrfs_calls.file_system(top)
        except OSError:
            return f"{pgdata} is on no Btrfs"
        if not btrfs_calls.is_subvolume(top):
            return f"{pgdata} is no subvolume of its own"
        if btrfs_calls.is_mount_point(pgdata):
            return f"{pgdata} is a mount point, which cannot be exchanged: put PGDATA one directory below it"
        try:
            beside = btrfs_calls.file_system(parent)
        except OSError:
            beside = ""
        if beside != mine:
            return f"{pgdata.parent} is not on the same Btrfs as {pgdata}"
        btrfs_calls.info(top)  # a kernel before 4.18, or a sandbox, says no here and not in the window
    if not os.access(pgdata.parent, os.W_OK, effective_ids=True):
        return f"{pgdata.parent} cannot be written: snapshots lie beside PGDATA"
    return None


def _other_cluster(server: Server, identifier: str, pgdata: Path) -> str | None:
    if server.data_directory and Path(server.data_directory).resolve() != pgdata:
        return f"the server runs in {server.data_directory}, not in {pgdata}: correct LYCH_PGDATA"
    with (pgdata / "global" / "pg_control").open("rb") as file:
        found = str(struct.unpack("=Q", file.read(8))[0])
    return None if identifier in ("", found) else f"{pgdata} is not the server's cluster: correct LYCH_PGDATA"


def _outside(pgdata: Path) -> str | None:
    if (pgdata / "pg_wal").is_symlink():
        return "pg_wal lies outside PGDATA"
    links = [path for path in (pgdata / "pg_tblspc").iterdir() if path.is_symlink()]
    if links:  # even one into PGDATA: a copy's link would lead to the live files
        return f"the tablespace {links[0].readlink()} lies outside PGDATA"
    return None


def _no_program(owner: Owner, major: int, pg_bin: Path | None) -> str | None:
    program = find("pg_ctl", pg_bin, major)
    if program is None:
        return "pg_ctl was not found: set LYCH_PG_BIN"
    try:
        run([program, "--version"], owner=owner, cwd=Path("/"), timeout_s=10)
    except (Refused, PermissionError) as error:
        return f"{program} does not run as {owner}: {error}"
    return None
