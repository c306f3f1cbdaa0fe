"""The freeze that a worker is in, on the worker's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Self

from lych_checkpoint.lease.lease import LeaseFacts, News


@dataclass(frozen=True, slots=True)
class Freeze:
    """The freeze this worker is in.

    ``until_s`` is on this host's clock that also counts while asleep; ``until_ms``, on Redis's clock, is the same
    moment or an earlier one.
    """

    token: str
    epoch: int
    mode: str
    until_s: float
    until_ms: int

    @classmethod
    def of(cls, lease: LeaseFacts | News, now_ms: int) -> Self:
        """Honour ``lease`` from now on, which Redis told at ``now_ms``."""
        return cls(lease.token, lease.epoch, lease.mode, until_s=clock_s() + lease.expires_in_ms / 1000,
                   until_ms=now_ms + lease.expires_in_ms)


#: Seconds on the clock that goes on while the machine sleeps. No function of ours: every task reads it.
clock_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
