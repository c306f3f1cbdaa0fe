"""Whether a cluster can be copied as files: whole, by us, and to a place beside it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from lych_checkpoint.database.server import Server
from lych_checkpoint.drivers.programs import find
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner, run

HELPER = "run as that user or as root, or set LYCH_HELPER"


def unfit(
    server: Server, identifier: str, pgdata: Path, pg_bin: Path | None, no_place: Callable[[Path], str | None]
) -> str | None:
    """Return None, or why ``pgdata`` (without symlinks) cannot be captured as files.

    Args:
        server: what it says of itself.
        identifier: of its cluster.
        pgdata: its directory, as far as we know.
        pg_bin: LYCH_PG_BIN.
        no_place: why this file system, or where PGDATA stands on it, does not do.
    """
    try:
        return _unfit(server, identifier, pgdata, pg_bin, no_place)
    except PermissionError as error:
        return f"{error.filename or pgdata} cannot be looked at: {HELPER}"
    except OSError as error:
        return f"{error.filename or pgdata}: {error.strerror}"


def _unfit(
    server: Server, identifier: str, pgdata: Path, pg_bin: Path | None, no_place: Callable[[Path], str | None]
) -> str | None:
    owner = Owner.of(pgdata)
    if not owner.is_me and os.geteuid() != 0:
        return f"{pgdata} belongs to {owner}: {HELPER}"
    reason = no_place(pgdata) or _other_cluster(server, identifier, pgdata) or _outside(pgdata)
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


def writable_beside(pgdata: Path) -> str | None:
    """Return None, or why no copies can lie beside ``pgdata``."""
    if os.access(pgdata.parent, os.W_OK, effective_ids=True):
        return None
    return f"{pgdata.parent} cannot be written: copies lie beside PGDATA"


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
