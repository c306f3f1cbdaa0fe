"""What is going on: the freeze, every worker, an open restore; and maintenance mode, a freeze by hand."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from lych_checkpoint import broadcast, freeze, journal
from lych_checkpoint.errors import CheckpointError, FreezeError, Refused, RestoreOpen
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lease, lock, requests, roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.lease.lease import LeaseFacts
from lych_checkpoint.lease.renewal import Renewal

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
                "name": entry.name, "pool": entry.pool, "state": _state(entry, here), "in_flight": entry.in_flight,
                "parked": here, "loaded": entry.loaded, "disk": entry.disk,
            }
            for boot, entry in sorted(entries.items(), key=lambda item: item[1].name)
            for here in [sum(one["boot"] == boot for one in parked.values())]
        ],
        "restore": restore,
        "quarantined": federation.vault.quarantine.count(),
    }


def hold(federation: Federation, for_s: float, reason: str, app: Any = None) -> dict[str, Any]:
    """Freeze every worker, for ``for_s`` seconds from when all have drained (maintenance mode); returns the status.

    Until all have drained the lease is short and renewed, so that nothing stays frozen for long if this process dies.

    Raises:
        FreezeError: a worker did not ack or drain in time; everything is thawed again.
        LockHeld: a create or restore runs.
        Refused: a worker without the plugin would not freeze.
    """
    if app is not None and for_s >= broadcast.CONSUMER_TIMEOUT_S and broadcast.takes_back(app):
        logger.warning("RabbitMQ ends workers that hold a message for longer than its consumer_timeout, 30 minutes "
                       "unless set, and this freeze is to last %g s: make sure that it is longer", for_s,
                       extra={"event": "freeze.long"})
    store = federation.store()
    terms = federation.terms(freeze.MAINTENANCE, reason)
    terms = replace(terms, lease_s=min(terms.lease_s, for_s))
    gone.sweep(store, federation.settings.gone_after_s)
    with lock.held(store, "freeze"):
        gone.settle(store)
        federation.check_for_strangers(app)
        _hold(store, terms, federation.ring(app), for_s)
    return status(federation)


def _hold(store: Store, terms: freeze.Terms, ring: freeze.Ring, for_s: float) -> None:
    taken = lease.take(store, mode=terms.mode, reason=terms.reason, coordinator=freeze.coordinator(),
                       lowest_epoch=0, lease_s=terms.lease_s)
    frozen = freeze.Freeze(store, terms, ring, taken.token, taken.epoch, taken.at_ms)
    renewing = Renewal(store, taken.token, terms.lease_s)
    try:
        frozen.wait_for_acks()
        frozen.drain()
        renewing.stop()
        frozen.keep(for_s)
    except BaseException as error:
        renewing.stop()
        try:
            lease.drop(store, taken.token)
        except CheckpointError as second:
            error.add_note(f"the thaw failed as well, the lease ends within {terms.lease_s:g} s: {second}")
        ring("thaw", taken.epoch)
        raise


def forget(federation: Federation, name: str) -> dict[str, Any]:
    """Take a user's word that the worker ``name`` is dead: it is waited for no longer. Returns the status.

    For a silent worker of another host, of which nothing here can tell; should it live after all, its next heartbeat
    brings it back.

    Raises:
        Refused: there is none of that name; or it lives, by its own heartbeat or by what this host sees.
    """
    store, where = federation.store(), f"worker {name}"
    named = {boot: entry for boot, entry in roster.entries(store).items() if entry.name == name}
    if not named:
        raise Refused("it is not in the roster", where, "lych-checkpoint status", "unknown-worker")
    beats, now_ms = roster.beats_ms(store), store.now_ms()
    for boot, entry in named.items():
        silent_ms = now_ms - beats.get(boot, 0)
        if silent_ms <= roster.LICENCE_S * 1000:
            raise Refused(f"it was heard {silent_ms / 1000:.1f} s ago", where, "stop it", "worker-lives")
        if gone.lives(entry):
            raise Refused("it, or something that it started, lives on this host", where, "end its processes",
                          "worker-lives")
    for boot in named:
        roster.leave(store, boot)
        logger.warning("Forgotten: %s", name, extra={"event": "worker.forgotten"})
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


def _state(entry: roster.Entry, parked: int) -> str:
    """Return the worker's own word, but for what only Redis knows: parked tasks, which count as drained."""
    return "frozen" if entry.state == "draining" and entry.in_flight - entry.exempt <= parked else entry.state


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
