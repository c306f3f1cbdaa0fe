"""What is going on: the freeze, every worker, an open restore; and maintenance mode, a freeze by hand."""

from __future__ import annotations

import logging
import time
from typing import Any

from lych_checkpoint import broadcast, freeze, journal
from lych_checkpoint.errors import FreezeError, Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lease, lock, requests, roster
from lych_checkpoint.lease.lease import LeaseFacts

logger = logging.getLogger(__name__)


def status(federation: Federation) -> dict[str, Any]:
    """Return the status document, without ``schema``."""
    store = federation.store()
    facts, parked = lease.read(store), requests.parked(store)
    entries = roster.entries(store)
    for boot in gone.gone(store, entries, federation.settings.gone_after_s):
        del entries[boot]
    open_restore = journal.read(federation.vault)
    restore = None
    if open_restore is not None:
        restore = {"phase": open_restore.phase, "checkpoint": open_restore.checkpoint}
    state = "restoring" if open_restore and open_restore.phase != "staging" else facts.phase if facts else "thawed"
    return {
        "state": state,
        "freeze": _freeze_document(facts) if facts else None,
        "workers": [
            {
                "name": entry.name, "pool": entry.pool, "state": entry.state, "in_flight": entry.in_flight,
                "parked": sum(one["boot"] == boot for one in parked.values()), "loaded": entry.loaded,
                "disk": entry.disk,
            }
            for boot, entry in sorted(entries.items(), key=lambda item: item[1].name)
        ],
        "restore": restore,
        "quarantined": federation.vault.quarantine.count(),
    }


def hold(federation: Federation, for_s: float, reason: str, app: Any = None) -> dict[str, Any]:
    """Freeze every worker for ``for_s`` seconds (maintenance mode); returns the status when all have drained.

    Raises:
        FreezeError: a worker did not ack or drain in time; everything is thawed again.
        LockHeld: a create or restore runs.
    """
    if app is not None and for_s >= broadcast.CONSUMER_TIMEOUT_S and broadcast.takes_back(app):
        logger.warning("RabbitMQ ends workers that hold a message for longer than its consumer_timeout, 30 minutes "
                       "unless set, and this freeze is to last %g s: make sure that it is longer", for_s,
                       extra={"event": "freeze.long"})
    store = federation.store()
    ring = federation.ring(app)
    gone.sweep(store, federation.settings.gone_after_s)
    with lock.held(store, "freeze"):
        gone.settle(store)
        taken = lease.take(store, mode=freeze.MAINTENANCE, reason=reason, coordinator=freeze.coordinator(),
                           lowest_epoch=0, lease_s=for_s)
        frozen = freeze.Freeze(store, federation.terms(freeze.MAINTENANCE, reason), ring, taken.token, taken.epoch,
                               taken.at_ms)
        try:
            frozen.wait_for_acks()
            frozen.drain()
        except BaseException:
            lease.drop(store, taken.token)
            ring("thaw", taken.epoch)
            raise
    return status(federation)


def thaw(federation: Federation, *, force: bool = False, app: Any = None) -> dict[str, Any]:
    """End the freeze in force; returns the status. Nothing to do is no error.

    Raises:
        Refused: a create holds it and ``force`` was not given; with it, that create fails unsealed.
        RestoreOpen: a restore has begun to close or switch.
    """
    store = federation.store()
    facts = lease.read(store)
    open_restore = journal.read(federation.vault)
    if open_restore is not None and open_restore.phase in ("closing", "switching"):
        raise RestoreOpen(f"a restore is {open_restore.phase}", str(federation.vault.root), "lych-checkpoint recover")
    if facts is not None:
        if facts.mode != freeze.MAINTENANCE and not force:
            raise Refused(f"the freeze belongs to a {facts.mode} by pid {facts.coordinator['pid']} on "
                          f"{facts.coordinator['node']}", store.where, "lych-checkpoint thaw --force", "freeze-owned")
        lease.drop(store, facts.token)
        federation.ring(app)("thaw", facts.epoch)
        _wait_until_thawed(federation)
    return status(federation)


def _wait_until_thawed(federation: Federation) -> None:
    store, end_s = federation.store(), time.monotonic() + federation.settings.ack_timeout_s
    while time.monotonic() < end_s:
        entries = roster.entries(store)
        dead = gone.gone(store, entries, federation.settings.gone_after_s)
        if all(entry.state == "thawed" for boot, entry in entries.items() if boot not in dead):
            return
        time.sleep(roster.HEARTBEAT_S / 5)
    raise FreezeError("the lease has ended, yet a worker has not said that it thawed", "workers",
                      "lych-checkpoint status", "no-thaw")


def _freeze_document(facts: LeaseFacts) -> dict[str, Any]:
    return {
        "mode": facts.mode, "epoch": facts.epoch, "phase": facts.phase, "reason": facts.reason,
        "coordinator": facts.coordinator, "since": facts.since_ms / 1000,
        "expires_in_s": facts.expires_in_ms / 1000,
    }
