"""Marks for every heartbeat and every publisher: the phase of an open restore, the generation of the last one."""

from __future__ import annotations

from dataclasses import dataclass

from lych_checkpoint.lease.connection import Store

# KEYS restored; ARGV generation
_AT_LEAST = """
if tonumber(redis.call('GET', KEYS[1]) or '-1') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return {}
"""


@dataclass(frozen=True, slots=True)
class Marks:
    """``restored`` is None where Redis does not know it: nobody said so yet, or it was wiped."""

    restored: int | None
    epoch: int
    now_ms: int


def mark_journal(store: Store, phase: str) -> None:
    """Say that a restore is in ``phase``; an empty text when none is open."""
    with store.speaking() as client:
        if phase:
            client.set(store.keys["journal"], phase)
        else:
            client.delete(store.keys["journal"])


def mark_restored(store: Store, generation: int) -> None:
    """Say which generation the last restore made, 0 for none: workers of an older era must leave.

    Never takes a newer one back.
    """
    store.script(_AT_LEAST, [store.keys["restored"]], generation)


def read(store: Store) -> Marks:
    """Return the generation of the last restore, the epoch of the last freeze, and Redis's clock."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=False)
        pipe.get(store.keys["restored"]).get(store.keys["epoch"]).time()
        restored, epoch, (seconds, micros) = pipe.execute()
    return Marks(None if restored is None else int(restored), int(epoch or 0), seconds * 1000 + micros // 1000)
