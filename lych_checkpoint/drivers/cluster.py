"""Whether a cluster can be copied as files: whole, by us, and to a place beside it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from lych_checkpoint.database.server import Server
from lych_checkpoint.drivers.base import Unfit
from lych_checkpoint.drivers.programs import find
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner, run

HELPER = "run as that user or as root, or set LYCH_HELPER"


def unfit(
    server: Server, identifier: str, pgdata: Path, pg_bin: Path | None, no_place: Callable[[Path], Unfit | None]
) -> Unfit | None:
    """Return None, or why ``pgdata`` (without symlinks) cannot be captured as files, and what makes it so.

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
        return Unfit(f"{error.filename or pgdata} cannot be looked at", HELPER)
    except OSError as error:
        return Unfit(f"{error.filename or pgdata}: {error.strerror}", "correct LYCH_PGDATA, or LYCH_DRIVER=dump")


def _unfit(
    server: Server, identifier: str, pgdata: Path, pg_bin: Path | None, no_place: Callable[[Path], Unfit | None]
) -> Unfit | None:
    owner = Owner.of(pgdata)
    if not owner.is_me and os.geteuid() != 0:
        return Unfit(f"{pgdata} belongs to {owner}", HELPER)
    reason = no_place(pgdata) or _other_cluster(server, identifier, pgdata) or _outside(pgdata)
    if reason is not None:
        return reason
    if not server.checksums:
        return Unfit("data checksums are off", f"stop the server, and run pg_checksums --enable -D {pgdata}")
    if not server.checkpointer:
        return Unfit(f"role {server.role} may not run CHECKPOINT", f"GRANT pg_checkpoint TO {server.role}")
    if server.in_recovery:
        return Unfit("the server is a standby", "set LYCH_DATABASE_URL to its primary, and run there")
    return _no_program(owner, server.major, pg_bin)


def major_of(pgdata: Path) -> int:
    """Return the major version of the cluster."""
    return int((pgdata / "PG_VERSION").read_text().split(".")[0])


def writable_beside(pgdata: Path) -> Unfit | None:
    """Return None, or why no copies can lie beside ``pgdata``."""
    if os.access(pgdata.parent, os.W_OK, effective_ids=True):
        return None
    return Unfit(f"{pgdata.parent} cannot be written, and copies lie beside PGDATA",
                 f"chown {Owner.of(pgdata)} {pgdata.parent}")


def _other_cluster(server: Server, identifier: str, pgdata: Path) -> Unfit | None:
    if server.data_directory and Path(server.data_directory).resolve() != pgdata:
        return Unfit(f"the server runs in {server.data_directory}, not in {pgdata}", "correct LYCH_PGDATA")
    with (pgdata / "global" / "pg_control").open("rb") as file:
        found = str(struct.unpack("=Q", file.read(8))[0])
    if identifier not in ("", found):
        return Unfit(f"{pgdata} is not the server's cluster", "correct LYCH_PGDATA")
    return None


def _outside(pgdata: Path) -> Unfit | None:
    if (pgdata / "pg_wal").is_symlink():
        return Unfit("pg_wal lies outside PGDATA", "stop the server, and move it back to where its link is; "
                     "or LYCH_DRIVER=dump")
    links = [path for path in (pgdata / "pg_tblspc").iterdir() if path.is_symlink()]
    if links:  # even one into PGDATA: a copy's link would lead to the live files
        return Unfit(f"the tablespace {links[0].readlink()} lies outside PGDATA",
                     "move its tables by ALTER TABLE ... SET TABLESPACE pg_default, and DROP TABLESPACE it; "
                     "or LYCH_DRIVER=dump")
    return None


def _no_program(owner: Owner, major: int, pg_bin: Path | None) -> Unfit | None:
    program = find("pg_ctl", pg_bin, major)
    if program is None:
        return Unfit("pg_ctl was not found", "set LYCH_PG_BIN to its directory")
    try:
        run([program, "--version"], owner=owner, cwd=Path("/"), timeout_s=10)
    except (Refused, PermissionError) as error:
        return Unfit(f"{program} does not run as {owner}: {error}",
                     f"set LYCH_PG_BIN to programs that {owner} may run")
    return None
