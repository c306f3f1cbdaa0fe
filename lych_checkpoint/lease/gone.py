"""Which workers are proven gone, and when a roster can be trusted."""

from __future__ import annotations

import fcntl
import time

from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity


def gone(store: Store, entries: dict[str, roster.Entry], gone_after_s: float) -> dict[str, str]:
    """Return, by boot id, the workers that are proven gone, and how.

    On this host the proof is the locked file that a worker shares with its pool children, and as long as one of them
    holds it no silence counts. On another one, or where that file is gone, only a silence longer than
    ``gone_after_s`` counts, for there a lost connection proves nothing.
    """
    beats, now_ms = roster.beats_ms(store), store.now_ms()
    found = {}
    for boot, entry in entries.items():
        silent_ms = now_ms - beats.get(boot, 0)
        if silent_ms <= roster.LICENCE_S * 1000:
            continue
        if _all_dead(entry):
            found[boot] = f"{entry.name} (dead)"
        elif silent_ms > gone_after_s * 1000 and not lives(entry):
            found[boot] = f"{entry.name} (silent for {silent_ms // 1000} s)"
    return found


def lives(entry: roster.Entry) -> bool:
    """Return whether the worker, or something that it started, is seen to live on this host."""
    return _all_dead(entry) is False or entry.identity.alive() is True


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


def _all_dead(entry: roster.Entry) -> bool | None:
    """Return whether the worker and all its children are dead, or None where nothing on this host can tell."""
    here = Identity.mine()
    if entry.identity.is_of_an_earlier_start(here):
        return True
    if not entry.identity.shares_pids(here):
        return None
    try:
        with open(entry.alive_file, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
