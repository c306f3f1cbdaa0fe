"""The lock: one create, restore, prune or rehearse at a time, from its first act to its last."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from lych_checkpoint.errors import Away, LockHeld
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity

# KEYS lock; ARGV token, record, ttl_ms, token of a dead owner or "". Returns {} when taken, else {record, token}, in
# one step, or the token could be that of somebody who took the lock over since.
_TAKE = """
local held = redis.call('HGET', KEYS[1], 'token')
if held and held ~= ARGV[4] then return {redis.call('HGET', KEYS[1], 'record'), held} end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'record', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {}
"""
# KEYS lock; ARGV token, ttl_ms. Returns {"1"} while the lock is ours.
_RENEW = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'0'} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'1'}
"""
# KEYS lock, bell; ARGV token. Removes the lock if it is ours.
_DROP = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'0'} end
redis.call('DEL', KEYS[1])
return {'1'}
"""
#: How long the lock outlives an owner that cannot be proven dead.
LOCK_TTL_S = 15.0


class Lock:
    """A held lock, renewed by a thread until it is dropped."""

    def __init__(self, store: Store, token: str) -> None:
        self._store, self.token = store, token
        self._done = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="lych-lock", daemon=True)

    def check(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            LockHeld: it expired and may belong to another by now.
        """
        renewed = self._store.script(_RENEW, [self._store.keys["lock"]], self.token, int(LOCK_TTL_S * 1000))
        if self._lost or renewed != ["1"]:
            raise LockHeld("the lock was lost while working", self._store.where, "try again", "lock-lost")

    def _renew(self) -> None:
        while not self._done.wait(LOCK_TTL_S / 5):
            try:
                self.check()
            except LockHeld:
                self._lost = True
                return
            except Away:
                continue

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def drop(self) -> None:
        """Stop renewing and give the lock back; if Redis is away it expires by itself."""
        self._done.set()
        self._thread.join(timeout=2)
        try:
            self._store.script(_DROP, [self._store.keys["lock"]], self.token)
        except Away:
            return


@contextmanager
def held(store: Store, purpose: str) -> Iterator[Lock]:
    """Hold the lock for the body of the `with`.

    A lock whose owner ran on this host and is proven dead is taken over at once.

    Raises:
        LockHeld: another operation runs; the message names it.
    """
    token, me = secrets.token_hex(16), Identity.mine()
    record = json.dumps({"purpose": purpose, "identity": asdict(me)})
    dead = ""
    for _ in range(2):
        found = store.script(_TAKE, [store.keys["lock"]], token, record, int(LOCK_TTL_S * 1000), dead)
        if not found:
            break
        owner = json.loads(found[0])
        identity = Identity(**owner["identity"])
        if dead or identity.alive() is not False:
            raise LockHeld(
                f"{owner['purpose']} runs as pid {identity.pid} on {identity.host}", store.where,
                "wait for it, or try again", "lock-held",
            )
        dead = found[1]
    lock = Lock(store, token)
    lock.start()
    try:
        yield lock
    finally:
        lock.drop()


def owner(store: Store) -> str:
    """Return what runs now ("create", …), or an empty text."""
    with store.speaking() as client:
        found = client.hget(store.keys["lock"], "record")
    return str(json.loads(found)["purpose"]) if found else ""
