"""The publisher's side: every message that this process publishes says in which era, and when.

A reading of Redis serves all messages of the next second, so a busy publisher pays no round trip for a message.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lych_checkpoint import eras
from lych_checkpoint.eras import Stamp
from lych_checkpoint.errors import Away, CheckpointError
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import marks

logger = logging.getLogger(__name__)

#: For so long one reading serves.
_SERVES_S = 1.0
#: After a failed one a publisher is not kept waiting again before this.
_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """``ahead_ms``: Redis's clock less this host's one, rather too much than too little."""

    header: str
    era: int
    epoch: int
    ahead_ms: float


class Stamper:
    """Stamps messages. Threads and forked children may share one.

    ``open_federation`` is called once, with the first message.
    """

    def __init__(self, open_federation: Callable[[], Federation]) -> None:
        self._open = open_federation
        self._federation: Federation | None = None
        self._reading: _Reading | None = None
        self._due_s = 0.0
        self._lock, self._pid = threading.Lock(), os.getpid()

    def on_publish(self, headers: dict[str, Any] | None = None, **_: Any) -> None:
        """Stamp a message; one that is published again, as a retry is, keeps its first stamp.

        While nothing was ever known of this federation, messages go without.
        """
        reading = self._serving()
        if reading is not None and headers is not None and reading.header not in headers:
            headers[reading.header] = _stamp(reading).dumps()

    def now(self) -> tuple[str, str]:
        """Return header and text of a stamp of this very moment.

        Raises:
            CheckpointError: Redis is away, or nothing is known of this federation.
        """
        reading = self._read()
        return reading.header, _stamp(reading).dumps()

    def _serving(self) -> _Reading | None:
        if os.getpid() != self._pid:  # another thread of the parent may have held the lock in the fork
            self._lock, self._pid = threading.Lock(), os.getpid()
        if _clock_s() >= self._due_s and self._lock.acquire(blocking=self._reading is None):
            try:
                if _clock_s() >= self._due_s:
                    self._renew()
            finally:
                self._lock.release()
        return self._reading

    def _renew(self) -> None:
        try:
            self._reading = self._read()
            self._due_s = _clock_s() + _SERVES_S
        except CheckpointError as error:
            self._due_s = _clock_s() + _AGAIN_S
            logger.debug("Messages say %s: %s", "what was last known" if self._reading else "nothing", error)

    def _read(self) -> _Reading:
        if self._federation is None:
            self._federation = self._open()
        store, asked_s = self._federation.store(), _clock_s()
        found = marks.read(store)
        known = self._reading
        if found.restored is not None:
            era = found.restored
        elif known is not None:
            era = known.era
        else:
            era = _by_vault(self._federation)
        return _Reading(eras.header(store.keys.uuid), max(era, known.era if known else 0),
                        max(found.epoch, known.epoch if known else 0), found.now_ms + 1 - asked_s * 1000)


def _by_vault(federation: Federation) -> int:
    """Return the era where Redis does not know it: no worker has started since it was made, or wiped."""
    if federation.vault.read_federation() is None:
        raise Away("which restore was the last is not known", federation.store().where, "start a worker", "no-era")
    return eras.present(federation.vault.lineage(), 0).era


def _stamp(reading: _Reading) -> Stamp:
    return Stamp(reading.era, reading.epoch, round(reading.ahead_ms + _clock_s() * 1000))


def _clock_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps
