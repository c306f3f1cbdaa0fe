"""Two marks that every heartbeat reads: the phase of an open restore, and the generation that the last one made."""

from __future__ import annotations

from lych_checkpoint.lease.connection import Store


def mark_journal(store: Store, phase: str) -> None:
    """Say that a restore is in ``phase``; an empty text when none is open."""
    with store.speaking() as client:
        if phase:
            client.set(store.keys["journal"], phase)
        else:
            client.delete(store.keys["journal"])


def mark_restored(store: Store, generation: int) -> None:
    """Say which generation the last restore made: workers whose gate saw an older one must leave."""
    with store.speaking() as client:
        client.set(store.keys["restored"], generation)
