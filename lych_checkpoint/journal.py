"""The journal of the one restore that may be open: how far it is, written before each step."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lych_checkpoint.drivers.base import Evidence
from lych_checkpoint.errors import Damage, LockHeld, Refused
from lych_checkpoint.records import RELEASE, VERSION, canonical, read_record
from lych_checkpoint.vault import Vault, flush_directory, write_atomic, writing

_FILE = "journal.json"
#: Which phases may follow each. Live is the old pair up to ``closing``, and in ``undone``, where only what was staged
#: is left to remove; the new pair in ``done``; in ``switching`` either, or a mixed one.
NEXT = {
    "staging": ("staging", "closing", "undone"),
    "closing": ("closing", "switching", "undone"),
    "switching": ("switching", "undone", "done"),
    "undone": ("undone",),
    "done": ("done",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """One restore.

    ``ticket`` names what is staged, and later the safety checkpoint; ``generation`` is what the soul will have;
    ``staged`` is the driver's evidence; ``displaced`` is the text of the lock of the body that goes;
    ``freeze`` are the facts of the freeze it went in; ``safety``: whether what goes is kept in the end; if not,
    ``discarding`` is the driver's evidence of what is being removed; ``why`` it was undone; ``host``: whose disk.
    """

    checkpoint: str
    ticket: str
    generation: int
    epoch: int
    phase: str = "staging"
    staged: Evidence = field(default_factory=dict)
    displaced: str = ""
    freeze: dict[str, Any] = field(default_factory=dict)
    safety: bool = True
    discarding: Evidence = field(default_factory=dict)
    why: str = ""
    host: str = ""


@contextmanager
def held(vault: Vault) -> Iterator[None]:
    """Hold the vault's restore lock; the kernel drops it when this process is dead, however it died.

    Programs we start do not inherit it: a server started by a restore would hold it for ever. The gits that write
    into the body hold the body's own lock.

    Raises:
        LockHeld: another restore or recover works on this vault.
        Refused, Away: the vault is not there, or cannot be written.
    """
    vault.open()
    path = vault.root / "run" / "restore.lock"
    if not path.exists():
        write_atomic(path, b"")  # the vault's owner's, whoever makes it
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace")
            raise LockHeld(f"a restore or recover works on this vault ({holder})", str(vault.root),
                           "wait for it") from error
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def path(vault: Vault) -> Path:
    """Return where the journal of an open restore lies."""
    return vault.root / _FILE


def read(vault: Vault) -> Journal | None:
    """Return the open restore, or None.

    Raises:
        Damage: the journal cannot be read, or a newer release wrote it.
    """
    record = vault.read_record(_FILE)
    if record is None:
        return None
    plain = {name: value for name, value in record.items() if name not in ("version", "release")}
    entry = Journal(**read_record(Journal, plain, str(vault.root / _FILE)))
    if entry.phase not in NEXT:
        raise Damage(f"there is no phase {entry.phase!r}", str(vault.root / _FILE), "", "malformed")
    return entry


def begin(vault: Vault, *, checkpoint: str, ticket: str, generation: int, epoch: int, safety: bool = True) -> Journal:
    """Open the journal of a new restore; durable when this returns."""
    return _write(vault, Journal(checkpoint=checkpoint, ticket=ticket, generation=generation, epoch=epoch,
                                 safety=safety, host=socket.gethostname()))


def advance(vault: Vault, phase: str, **facts: Any) -> Journal:
    """Write the next phase, or more facts of the same one, before the step that they announce.

    Raises:
        Refused: no restore is open, or its phase is followed by others only (code ``journal-order``).
    """
    known = read(vault)
    if known is None:
        raise Refused("no restore is open", str(vault.root / _FILE), "", "no-journal")
    if phase not in NEXT[known.phase]:
        raise Refused(f"a restore that is {known.phase} cannot be {phase}", str(vault.root / _FILE), "",
                      "journal-order")
    return _write(vault, replace(known, phase=phase, **facts))


def close(vault: Vault, outcome: str, **more: Any) -> None:
    """End the open restore and keep its record, with how it ended and what else is told, in the vault's notes.

    The record is durable before the journal goes: a crash between the two leaves the restore open.
    """
    known = read(vault)
    if known is None:
        return
    kept = vault.root / "notes" / f"restore-{known.ticket}.json"
    write_atomic(kept, canonical({"version": VERSION, "release": RELEASE, **asdict(known), "outcome": outcome,
                                   **more}))
    with writing(vault.root / _FILE):
        (vault.root / _FILE).unlink()
        flush_directory(vault.root)


def _write(vault: Vault, entry: Journal) -> Journal:
    write_atomic(vault.root / _FILE, canonical({"version": VERSION, "release": RELEASE, **asdict(entry)}))
    return entry
