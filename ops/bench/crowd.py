"""A thousand workers that are not there: simulated roster entries that ack a real freeze over a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from lych_checkpoint import freeze
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity
from ops.bench.record import Row
from ops.servers.child import end

#: Each process acks for its share, one script call per entry, as so many workers would.
_PROCESSES = 4
_SHARE = """
import json, sys
from lych_checkpoint.lease import lease, roster
from lych_checkpoint.lease.connection import Store
store = Store(sys.argv[1], sys.argv[2])
boots = json.loads(sys.stdin.readline())
idle = roster.Ack(in_flight=(), tasks={}, exempt=(), broken=False)
bell = store.client.pubsub(ignore_subscribe_messages=True)
bell.subscribe(store.keys["bell"])
print("listening", flush=True)
while True:
    message = bell.get_message(timeout=1)
    if message and message["data"].startswith("freeze"):
        standing = lease.read(store)
        until_ms = store.now_ms() + standing.expires_in_ms if standing else 0
        for boot in boots if standing else ():
            roster.ack(store, boot, roster.Claim(
                token=standing.token, epoch=standing.epoch, until_ms=until_ms, ack=idle))
"""


def measure(federation: Federation, url: str, count: int, n: int) -> list[Row]:
    """Measure freezes of ``count`` simulated workers: lease to all acks, and the last transaction."""
    acks, confirms, holds = [], [], []
    with _crowd(federation.store(), url, count):
        for number in range(n + 1):
            began_s = time.perf_counter()
            terms = federation.terms(freeze.CHECKPOINT, "bench")
            with freeze.thawing(federation.store(), terms, lambda _act, _epoch: None) as (frozen, thaw):
                frozen.wait_for_acks()
                acked_s = time.perf_counter()
                frozen.drain()
                drained_s = time.perf_counter()
                frozen.confirm()
                confirmed_s = time.perf_counter()
                thaw()
            if number:
                acks.append((acked_s - began_s) * 1000)
                confirms.append((confirmed_s - drained_s) * 1000)
                holds.append((time.perf_counter() - began_s) * 1000)
    variant = f"{count} simulated"
    return [Row("lease to all acks", variant, tuple(acks)), Row("last transaction", variant, tuple(confirms)),
            Row("hold, nothing captured", variant, tuple(holds))]


@contextmanager
def _crowd(store: Store, url: str, count: int) -> Iterator[None]:
    boots = [uuid.uuid4().hex for _ in range(count)]
    for number, boot in enumerate(boots):
        roster.beat(store, roster.Entry(
            name=f"simulated-{number}@nowhere", boot=boot, pool="prefork", identity=Identity.mine(), alive_file="",
            loaded="", disk="", generation=1,
        ))
    with store.speaking() as client:  # as if each had just looked, whenever that is read
        client.zadd(store.keys["beats"], dict.fromkeys(boots, store.now_ms() + 3_600_000))
    children = [
        subprocess.Popen([sys.executable, "-c", _SHARE, url, store.keys.uuid], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
        for _ in range(_PROCESSES)
    ]
    try:
        for number, child in enumerate(children):
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(boots[number::_PROCESSES]).encode() + b"\n")
            child.stdin.flush()
            child.stdout.readline()
        yield
    finally:
        for child in children:
            end(child)
        for boot in boots:
            roster.leave(store, boot)
