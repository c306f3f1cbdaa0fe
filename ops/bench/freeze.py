"""From the lease written to all acks, and the whole hold, for idle workers; the floor is a bare publish to BLPOP."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import redis

from ops.bench.ground import Ground, place, rounds
from ops.bench.record import Row, header, report
from ops.servers.child import end

_COUNTS = (1, 4, 16)
_CHANNEL, _ACKS = "floor:bell", "floor:acks"
# Each listener is what a worker is at the least: a process that hears a message and answers with a push.
_LISTENER = f"""
import sys, redis
client = redis.Redis.from_url(sys.argv[1])
bell = client.pubsub(ignore_subscribe_messages=True)
bell.subscribe("{_CHANNEL}")
for message in bell.listen():
    client.rpush("{_ACKS}", message["data"])
"""


def measure() -> None:
    """Measure 1, 4 and 16 workers, floor and freeze in turns, and report."""
    rows = []
    n = rounds(20)
    with place() as home, ExitStack() as stack:
        ground = Ground(home, stack)
        head = header(home, ground.versions())
        names: list[str] = []
        for count in _COUNTS:
            more = [f"w{number}" for number in range(len(names), count)]
            ground.start_workers(more, pool="solo")
            names += more
            floor, acks, holds, captures = [], [], [], []
            with listening(ground.broker.url, count) as ring:
                ground.create()  # the first one warms caches and is not counted
                for _ in range(n):
                    floor.append(ring())
                    window = ground.create()["window"]
                    acks.append(window["ack_ms"])
                    holds.append(window["hold_ms"])
                    captures.append(window["capture_ms"])
            variant = f"{count} workers"
            rows += [
                Row("bare publish to acks", variant, tuple(floor)),
                Row("lease to all acks", variant, tuple(acks), floor="bare publish to acks"),
                Row("capture (dump, empty database)", variant, tuple(captures)),
                Row("hold", variant, tuple(holds)),
            ]
        report("freeze", head, rows)


@contextmanager
def listening(url: str, count: int) -> Iterator[FloorBell]:
    """Start ``count`` bare listeners and yield the bell that measures one round over them, in ms."""
    children = [subprocess.Popen([sys.executable, "-c", _LISTENER, url]) for _ in range(count)]
    try:
        with redis.Redis.from_url(url) as client:
            while dict(client.pubsub_numsub(_CHANNEL)).get(_CHANNEL.encode(), 0) < count:
                time.sleep(0.02)
            yield FloorBell(client, count)
    finally:
        for child in children:
            end(child)


class FloorBell:
    """Rings the bare listeners."""

    def __init__(self, client: redis.Redis, count: int) -> None:
        self._client, self._count = client, count

    def __call__(self) -> float:
        """Publish once, wait for every answer, and return the milliseconds."""
        began_s = time.perf_counter()
        self._client.publish(_CHANNEL, "1")
        for _ in range(self._count):
            self._client.blpop([_ACKS], timeout=5)
        return (time.perf_counter() - began_s) * 1000
