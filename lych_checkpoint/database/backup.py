"""The server's backup mode: files may be copied one after the other, and WAL makes one moment of them.

Between `begin` and `end` the server writes whole pages into its WAL, so that whatever state a copied file is in, what
was written from `begin` on mends it. A recovery that reads on behind `end` comes to any later moment, exactly.
"""

from __future__ import annotations

import re
import secrets

from lych_checkpoint.database.connection import Connection, place, rows
from lych_checkpoint.errors import Refused

#: Below, backup mode has other names and an exclusive form that a crash does not survive.
_OLDEST = 15


def unable(connection: Connection) -> tuple[str, str] | None:
    """Return None, or why this role cannot make a backup of this server, and the command that makes it so."""
    if connection.info.server_version < _OLDEST * 10_000:
        return f"the server is older than release {_OLDEST}", "upgrade it, or LYCH_DRIVER=dump"
    level, slots, role, replicates, starts = rows(connection, """
        SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, rolname::text,
            rolsuper OR rolreplication, has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE')
                AND has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE')
        FROM pg_roles WHERE rolname = current_user""")[0]
    if level == "minimal" or not slots:
        name, value = ("wal_level", "replica") if level == "minimal" else ("max_replication_slots", "10")
        return "no backup is possible", f"ALTER SYSTEM SET {name} = '{value}', and restart the server"
    if not starts:
        return (f"role {role} may not make backups",
                f"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO {role}")
    return None if replicates else (f"role {role} may not make a replication slot", f"ALTER ROLE {role} REPLICATION")


def begin(connection: Connection) -> None:
    """Enter backup mode, with a checkpoint, and keep all WAL from here on; both end with the connection at latest."""
    rows(connection, "SELECT pg_create_physical_replication_slot(%s, true, true)", (f"lych_{secrets.token_hex(8)}",))
    rows(connection, "SELECT pg_backup_start('lych-checkpoint', true)")


def end(connection: Connection) -> str:
    """Leave backup mode, and return the backup_label that the copy needs. WAL is kept on."""
    return str(rows(connection, "SELECT labelfile FROM pg_backup_stop(false)")[0][0])


def flushed(connection: Connection) -> int:
    """Return the position in the WAL up to which all is on the disk."""
    return int(rows(connection, "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0])


def timeline(connection: Connection) -> int:
    """Return the timeline on which the server writes."""
    return int(str(rows(connection, "SELECT pg_walfile_name(pg_current_wal_flush_lsn())")[0][0])[:8], 16)


def segment_bytes(connection: Connection) -> int:
    """Return the size of a WAL segment."""
    return int(rows(connection, "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'")[0][0])


def release(connection: Connection) -> None:
    """Keep no more WAL. Succeeds only if all of it was kept until now."""
    rows(connection, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE active_pid = %s",
         (connection.info.backend_pid,))


def segments(connection: Connection, label: str, until: int) -> list[str]:
    """Return the WAL segments from a backup's begin up to the position ``until``, by file name, in order.

    Raises:
        Refused: the label does not say where it began (code ``odd-label``).
    """
    found = re.search(r"^START WAL LOCATION: ([0-9A-F]+)/([0-9A-F]+) ", label, re.MULTILINE)
    timeline = re.search(r"^START TIMELINE: (\d+)$", label, re.MULTILINE)
    if found is None or timeline is None:
        raise Refused("the backup label does not say where it began", place(connection), "", "odd-label")
    size = segment_bytes(connection)
    each = 2**32 // size
    first = ((int(found[1], 16) << 32) | int(found[2], 16)) // size
    return [f"{int(timeline[1]):08X}{number // each:08X}{number % each:08X}"
            for number in range(first, (until - 1) // size + 1)]
