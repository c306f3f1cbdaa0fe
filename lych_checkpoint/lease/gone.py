"""Which workers are proven gone, and when a roster can be trusted."""

from __future__ import annotations

import fcntl
import time

from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity


def gone(store: Store, entries: dict[str, roster.Entry], gone_after_s: float) -> dict[str, str]:
    """Return, by boot id, the workers that are proven gone, and how.

    On this host the proof is the locked file that a worker shares with its pool children; on another one only a
    silence longer than ``gone_after_s`` counts, for there a lost connection proves nothing.
    """
    beats, now_ms = roster.beats_ms(store), store.now_ms()
    found = {}
    for boot, entry in entries.items():
        silent_ms = now_ms - beats.get(boot, 0)
        if silent_ms <= roster.LICENCE_S * 1000:
            continue
        if _all_dead(entry):
            found[boot] = f"{entry.name} (dead)"
        elif silent_ms > gone_after_s * 1000 and entry.identity.alive() is not True:
            found[boot] = f"{entry.name} (silent for {silent_ms // 1000} s)"
    return found


def sweep(store: Store, gone_after_s: float) -> None:
    """Take workers that are proven gone out of the roster, before a freeze would wait for them."""
    for boot in gone(store, roster.entries(store), gone_after_s):
        roster.leave(store, boot)


def settle(store: Store) -> None:
    """Wait until the roster can be trusted: `roster.TRUST_S` after Redis began or was emptied."""
    with store.speaking() as client:
        client.set(store.keys["born"], store.now_ms(), nx=True)
        born_ms = int(client.get(store.keys["born"]))
    left_s = roster.TRUST_S - (store.now_ms() - born_ms) / 1000
    if left_s > 0:
        time.sleep(min(left_s, roster.TRUST_S))


def _all_dead(entry: roster.Entry) -> bool:
    if entry.identity.alive() is None:
        return False
    if entry.identity.alive() is False and entry.identity.machine != Identity.mine().machine:
        return True  # that host has been started anew since
    try:
        with open(entry.alive_file, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
