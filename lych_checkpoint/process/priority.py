"""Work that may wait for others."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: A tenth of the processor time of what runs beside it, where that wants all of it; see sched(7).
_NICE = 10
Out = TypeVar("Out")


def unhurried(act: Callable[[], Out]) -> Out:
    """Call ``act`` at a low priority, in a thread of its own: on Linux each has one, and it cannot be raised again.

    Programs and threads that it starts inherit the priority.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="lych-unhurried", initializer=os.nice, initargs=(_NICE,)) as pool:
        return pool.submit(act).result()
