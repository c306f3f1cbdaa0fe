"""Rehearse a restore: both halves brought back aside, looked at as a worker would, and taken away again.

Nothing live is touched and nobody is frozen: the soul runs on a private socket (or in a scratch database), the body
stands in the vault's own `run` folder. What a killed rehearsal left is swept by the next one.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint import body, gate, inspection, journal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.errors import CheckpointError, Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import lock
from lych_checkpoint.manifest import BodyLock, Manifest, witnessed
from lych_checkpoint.process import Identity, run_kept
from lych_checkpoint.records import RELEASE, VERSION, canonical
from lych_checkpoint.soul import Soul
from lych_checkpoint.vault import write_atomic

logger = logging.getLogger(__name__)

_OPEN = "run/rehearsal.json"
_STAGE = "run/rehearsal"
_OUTPUT_BYTES = 1 << 20


def rehearse(federation: Federation, name: str) -> dict[str, Any]:
    """Bring a checkpoint back aside, run gate, pg_amcheck and LYCH_REHEARSE on the pair, and remove it.

    Returns:
        ``checkpoint``, ``ok``, ``at``, ``took_ms``, ``gate`` (verdict), ``amcheck`` and ``command`` (what they said);
        also kept in the vault's notes, of a failure too.

    Raises:
        LockHeld: a create, restore or rehearsal is under way.
        RestoreOpen: an earlier restore has not ended.
        Damage: bytes or pages are not what was sealed.
        CheckpointError: the checkpoint cannot be brought back here, or the gate or the command said no.
    """
    with journal.held(federation.vault), lock.held(federation.store(), "rehearse"):
        if journal.read(federation.vault) is not None:
            raise RestoreOpen("an earlier restore has not ended", str(federation.vault.root),
                              "lych-checkpoint recover")
        _sweep(federation)
        manifest = federation.vault.resolve(name)
        said: dict[str, Any] = {"checkpoint": manifest.id, "ok": False, "at": _now(), "took_ms": 0.0, "gate": "",
                                "amcheck": "", "command": "", "error": ""}
        began_s = time.monotonic()
        try:
            inspection.verify(federation, manifest.id)
            _try(federation, manifest, said)
            said["ok"] = True
        except CheckpointError as error:
            said["error"] = str(error)
            raise
        finally:
            said["took_ms"] = round((time.monotonic() - began_s) * 1000, 1)
            federation.vault.note_rehearsal(manifest.id, said)
    logger.info("Rehearsed %s", manifest.id, extra={"event": "rehearse.done", "checkpoint": manifest.id})
    return said


def _try(federation: Federation, manifest: Manifest, said: dict[str, Any]) -> None:
    folder, root = federation.vault.path(manifest.id), federation.vault.root / _STAGE
    pair = BodyLock.loads((folder / "lychd.lock").read_text(), str(folder / "lychd.lock"))
    with _staged(federation, manifest) as (soul, ticket, staged):
        root.mkdir(mode=0o700)
        body.make_root(pair, root, folder / "body")
        body.stage(pair, root, folder / "body", ticket)
        body.displace((), root, ticket, root / "shadow")
        body.switch(pair, root, ticket, alone=True)
        differences = body.verify(pair, root)
        if differences:
            raise Refused(f"the body is not what was sealed: {differences[0]}", str(root), "", "body-differs")
        soul.animate(
            staged, facts=manifest.soul, generation=manifest.soul.generation + 1, signature=pair.signature,
            repos=witnessed(pair.repos), journal=ticket,
        )
        with soul.opened(staged) as url:
            said["gate"] = _ask_gate(federation, root, url)
            said["amcheck"] = soul.amcheck(url)
            said["command"] = _run_command(federation, root, url, manifest.id)


def _ask_gate(federation: Federation, root: Path, url: str) -> str:
    """Run the gate on the staged pair; the settings say which paths are the body, so they are tried too."""
    settings = federation.settings.model_copy(update={"root": root, "database_url": url})
    staged = Federation(settings, federation.uuid)
    with connect(url) as connection:
        known = witness.read(connection)
    report = gate.look(staged, known) if known else None
    if report is not None and report.verdict != "aligned":
        raise gate.refusal(staged, report)
    return gate.check(staged).verdict


def _run_command(federation: Federation, root: Path, url: str, checkpoint: str) -> str:
    """Run the user's own check in the staged body, on the staged data; its output is kept beside the note."""
    settings = federation.settings
    if not settings.rehearse:
        return "not set"
    output = federation.vault.root / "notes" / f"rehearsal-{checkpoint}.log"
    run_kept(settings.rehearse, output, keep_bytes=_OUTPUT_BYTES, timeout_s=settings.rehearse_timeout_s, cwd=root,
             environment={"LYCH_ROOT": str(root), "LYCH_DATABASE_URL": url},
             on_start=lambda running: _remember(federation, running=asdict(running)))
    return "passed"


@contextmanager
def _staged(federation: Federation, manifest: Manifest) -> Iterator[tuple[Soul, str, dict[str, Any]]]:
    """Stage the soul, with a record of it that outlives a kill; both are gone afterwards."""
    settings = federation.settings
    soul = Soul.open(federation.ground(), manifest.soul.driver, settings.writers, settings.helper)
    ticket = federation.vault.new_id(datetime.now(UTC))
    plan = soul.plan_stage(manifest.soul, ticket)
    _remember(federation, driver=manifest.soul.driver, staged=plan)
    try:
        staged = soul.stage(manifest.soul, federation.vault.path(manifest.id) / "soul", ticket)
        _remember(federation, staged=staged)
        yield soul, ticket, staged
    except BaseException as error:
        try:
            _sweep(federation)
        except (CheckpointError, OSError) as second:
            error.add_note(f"what was staged could not be removed: {second}; the next rehearsal removes it")
        raise
    _sweep(federation)


def _sweep(federation: Federation) -> None:
    """Remove what a rehearsal staged, this one's or a killed one's."""
    vault = federation.vault
    record = vault.read_record(_OPEN)
    if record is not None:
        if record.get("running"):
            Identity(**record["running"]).end_group()
        soul = Soul.reopen(federation.ground(), record["driver"], record["staged"])
        soul.discard_stage(record["staged"])
    if (vault.root / _STAGE).exists():
        shutil.rmtree(vault.root / _STAGE)
    (vault.root / _OPEN).unlink(missing_ok=True)


def _remember(federation: Federation, **facts: Any) -> None:
    known = federation.vault.read_record(_OPEN) or {"version": VERSION, "release": RELEASE}
    write_atomic(federation.vault.root / _OPEN, canonical({**known, **facts}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
