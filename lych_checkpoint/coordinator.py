"""Create a checkpoint: freeze, capture body and soul in one window, thaw, seal.

The seal is written only if lease and freeze held from before the first read until after the last. Whatever fails on
the way thaws the workers and leaves no checkpoint.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lych_checkpoint import body, environment, freeze, journal, rebuild, seal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.errors import CheckpointError, LockHeld, Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lock, requests
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.manifest import Environment, FreezeFacts, Manifest, SoulFacts
from lych_checkpoint.soul import Capture, Soul
from lych_checkpoint.vault import write_atomic

logger = logging.getLogger(__name__)

#: How often a waiting request looks whether it was served.
_LINE_POLL_S = 0.05
#: Attempts when body or database moved inside the window: the next one usually finds them still.
_ATTEMPTS = 3
_MOVED = ("body-moved", "snapshot-moved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for, and by whom: a running task is parked while it waits, and let through while it works."""

    label: str = ""
    reason: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    wait: bool = True
    task_id: str = ""
    task: str = ""
    boot: str = ""
    line: str = field(default_factory=lambda: secrets.token_hex(8))


def create(federation: Federation, request: Request, app: Any = None) -> dict[str, Any]:
    """Seal a checkpoint whose freeze begins after this call, or share one that another request makes.

    Returns:
        The create document, without ``schema``.

    Raises:
        LockHeld: another operation runs and the request does not wait.
        CheckpointError: nothing was sealed; workers run.
    """
    store = federation.store()
    asked_ms = store.now_ms()
    with _in_line(store, request, asked_ms):
        while True:
            shared = requests.served(store, asked_ms)
            if shared is not None and not (request.label or request.tags):
                return {**shared, "coalesced": max(1, int(shared["coalesced"]))}
            try:
                with lock.held(store, "create") as held:
                    return _create(federation, store, held, request, app)
            except LockHeld as error:
                if not request.wait or error.code != "lock-held":
                    raise
            time.sleep(_LINE_POLL_S)
            requests.wait_in_line(store, request.line, asked_ms)


def _create(federation: Federation, store: Store, held: lock.Lock, request: Request, app: Any) -> dict[str, Any]:
    _preflight(federation, store, app)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _attempt(federation, store, held, request, app)
        except Refused as error:
            if error.code not in _MOVED or attempt == _ATTEMPTS:
                raise
            logger.info("Attempt %d: %s", attempt, error, extra={"event": "create.retry"})
    raise AssertionError("unreachable")


def _attempt(federation: Federation, store: Store, held: lock.Lock, request: Request, app: Any) -> dict[str, Any]:
    settings, vault = federation.settings, federation.vault
    with connect(settings.need("database_url")) as connection:
        known, around = witness.read(connection), environment.read(connection)
    if known is None:
        raise Refused("the soul has no witness", "database", "lych-checkpoint init", "no-witness")
    checkpoint_id = vault.new_id(datetime.now(UTC))
    soul = Soul.open(federation.ground(), settings.driver, settings.writers, settings.helper)
    soul.sweep(vault.ids)
    warnings = soul.preflight() + federation.strays() + federation.vanished(known)
    terms = federation.terms(
        freeze.CHECKPOINT, request.reason or request.label or "checkpoint", lowest_epoch=known.epoch,
        through=frozenset({(request.boot, request.task_id)} if request.task_id else ()),
    )
    with (
        vault.partial(checkpoint_id) as partial,
        federation.scanning() as scan,
        soul.capturing(checkpoint_id, partial / "soul") as capture,
        body.pinned(scan, checkpoint_id),
    ):
        with freeze.thawing(store, terms, federation.ring(app)) as (frozen, thaw):
            frozen.wait_for_acks()
            frozen.drain()
            frozen.check_one_body()
            _window(scan, capture, frozen)
            facts = thaw()
        around, doubts = environment.during(settings.need("database_url"), around)
        soul_facts = capture.finish()
        manifest = _write(federation, store, checkpoint_id, partial, scan, soul_facts, facts, request,
                          [*warnings, *doubts], around)
        held.check()
        seal.seal(partial, manifest, settings.key_path)
        vault.publish(checkpoint_id)
    return _announce(federation, store, vault.manifest(checkpoint_id), frozen.began_ms, frozen.epoch)


def _window(scan: body.Scan, capture: Capture, frozen: freeze.Freeze) -> None:
    """Take body and soul while nothing moves, and prove afterwards that nothing did."""
    capture.begin()
    body.recheck(scan)
    capture.take()
    body.recheck(scan)
    capture.end()
    frozen.confirm()


def _write(
    federation: Federation, store: Store, checkpoint_id: str, partial: Path, scan: body.Scan, soul_facts: SoulFacts,
    facts: FreezeFacts, request: Request, warnings: list[str], around: Environment,
) -> Manifest:
    """Write `lychd.lock` and the bundles, and say everything that the seal will cover."""
    moment = datetime.fromtimestamp(facts.frozen_at, UTC)
    created_at = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    around = replace(around, rebuilt=rebuild.stamp(federation.settings.root))
    body_lock = body.lock_of(scan, checkpoint_id, created_at, around)
    write_atomic(partial / "lychd.lock", body_lock.dumps().encode())
    doubts = body.bundle(scan, checkpoint_id, partial / "body", federation.vault.last_bundles())
    if doubts:
        raise Refused(f"a repository could not be made anew from its bundle: {doubts[0]}", "body",
                      "git fsck --full there, and mend what it says", "bundle-doubt")
    return Manifest(
        id=checkpoint_id, federation=federation.settings.federation, uuid=store.keys.uuid, created_at=created_at,
        signature=body_lock.signature, repos=body_lock.commits, soul=soul_facts, freeze=facts, files={},
        previous=federation.vault.last_seal(), label=request.label, reason=request.reason, tags=request.tags,
        coalesced=requests.waiting_until(store, round(facts.frozen_at * 1000), beside=request.line),
        worktree_check=scan.worktree_check, unheld=scan.unheld, warnings=tuple(warnings),
    )


def _announce(federation: Federation, store: Store, manifest: Manifest, freeze_ms: int, epoch: int) -> dict[str, Any]:
    """Tell the root, the witness and whoever waits; the checkpoint is sealed whether or not that works."""
    document = manifest.as_json()
    try:
        lock_text = (federation.vault.path(manifest.id) / "lychd.lock").read_bytes()
        write_atomic(federation.settings.root / "lychd.lock", lock_text, mode=0o644)
        with connect(federation.settings.need("database_url")) as connection:
            witness.write_epoch(connection, epoch)
        requests.announce(store, freeze_ms, document)
    except (CheckpointError, OSError) as error:
        logger.warning("Sealed, but not announced everywhere: %s", error, extra={"event": "create.unannounced"})
    logger.info("Sealed %s", manifest.id, extra={"event": "create.sealed", "checkpoint": manifest.id})
    return document


def _preflight(federation: Federation, store: Store, app: Any) -> None:
    """Refuse what cannot end well, and sweep what earlier attempts left, before anyone is frozen."""
    federation.vault.open()
    open_restore = journal.read(federation.vault)
    if open_restore is not None:
        raise RestoreOpen(f"a restore is {open_restore.phase}", str(federation.vault.root), "lych-checkpoint recover")
    federation.vault.sweep(lambda attempt: body.unpin(federation.found(), attempt, federation.shadow))
    body.sweep()
    gone.sweep(store, federation.settings.gone_after_s)
    gone.settle(store)
    federation.check_for_strangers(app)


@contextmanager
def _in_line(store: Store, request: Request, asked_ms: int) -> Iterator[None]:
    """Park the asking task and stand in line; afterwards the task goes on only while nothing is frozen."""
    requests.wait_in_line(store, request.line, asked_ms)
    if request.task_id:
        requests.park(store, request.task_id, request.boot, request.task)
    try:
        yield
    except BaseException as error:
        try:
            _leave_line(store, request)
        except CheckpointError as second:
            error.add_note(f"the request could not leave the line: {second}")
        raise
    else:
        _leave_line(store, request)


def _leave_line(store: Store, request: Request) -> None:
    requests.leave_line(store, request.line)
    while request.task_id and not requests.unpark(store, request.task_id):
        time.sleep(_LINE_POLL_S)
