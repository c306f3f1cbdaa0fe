"""Requests for a checkpoint: who waits, parked, for which freeze, and what the last one made was."""

from __future__ import annotations

import json
from typing import Any

from lych_checkpoint.lease.connection import Store

# KEYS lease, parked; ARGV task id. Leaves only while nothing is frozen: a parked task never wakes inside a window.
_UNPARK = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {'0'} end
redis.call('HDEL', KEYS[2], ARGV[1])
return {'1'}
"""
# KEYS parked, lease; ARGV task id, record, prefix of the wake list. Wakes the coordinator of a freeze in force.
_PARK = """
redis.call('HSET', KEYS[1], ARGV[1], '* ' .. ARGV[2])
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if epoch then redis.call('RPUSH', ARGV[3] .. epoch, 'parked') end
return {'1'}
"""
# KEYS parked, lease; ARGV task id, record, prefix of the wake list. Parks for the freeze in force and no other: a
# record that could not be taken back counts for nothing later. Returns {"0"} when nothing is frozen.
_PARK_WHILE_FROZEN = """
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if not epoch then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return {'0'}
end
local record = epoch .. ' ' .. ARGV[2]
if redis.call('HGET', KEYS[1], ARGV[1]) ~= record then
  redis.call('HSET', KEYS[1], ARGV[1], record)
  redis.call('RPUSH', ARGV[3] .. epoch, 'parked')
end
return {'1'}
"""
# KEYS waiting, seen; ARGV request, when it was made
_WAIT = """
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000), ARGV[1])
return {}
"""
# KEYS waiting, seen; ARGV until, request left out, longest silence. Drops killed requests. Returns {number}.
_COUNT = """
local t = redis.call('TIME')
local seen_ms = t[1] * 1000 + math.floor(t[2] / 1000) - ARGV[3]
local count = 0
for _, request in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do
  if tonumber(redis.call('ZSCORE', KEYS[2], request) or '0') < seen_ms then
    redis.call('ZREM', KEYS[1], request)
    redis.call('ZREM', KEYS[2], request)
  elseif request ~= ARGV[2] then count = count + 1 end
end
return {count}
"""
#: A waiting request says so much more often than this.
_UNSEEN_MS = 10_000
#: Outcomes are kept this long for whoever asked.
OUTCOME_TTL_S = 3600


def park(store: Store, task_id: str, boot: str, task: str) -> None:
    """Count the running task ``task_id`` of worker ``boot`` as drained, in every freeze, until it is unparked."""
    record = json.dumps({"boot": boot, "task": task})
    store.script(_PARK, [store.keys["parked"], store.keys["lease"]], task_id, record, store.keys["wake:"])


def park_while_frozen(store: Store, task_id: str, boot: str, task: str) -> bool:
    """Count the running task as drained in the freeze in force; False, and unparked, when there is none.

    To be asked again until it says False.
    """
    record = json.dumps({"boot": boot, "task": task})
    return store.script(_PARK_WHILE_FROZEN, [store.keys["parked"], store.keys["lease"]], task_id, record,
                        store.keys["wake:"]) == ["1"]


def unpark(store: Store, task_id: str) -> bool:
    """Let a parked task go on; False while a freeze is in force."""
    return store.script(_UNPARK, [store.keys["lease"], store.keys["parked"]], task_id) == ["1"]


def forget_parked(store: Store, task_ids: list[str]) -> None:
    """Drop the records of parked tasks whose process died."""
    with store.speaking() as client:
        client.hdel(store.keys["parked"], *task_ids)


def parked(store: Store, epoch: int | None = None) -> dict[str, dict[str, str]]:
    """Return the parked tasks: id → boot, task; with ``epoch`` only those that count in that freeze."""
    with store.speaking() as client:
        found: dict[str, str] = client.hgetall(store.keys["parked"])
    split = {task_id: text.partition(" ") for task_id, text in found.items()}
    return {task_id: json.loads(record) for task_id, (of, _, record) in split.items()
            if epoch is None or of in ("*", str(epoch))}


def wait_in_line(store: Store, request: str, at_ms: int) -> None:
    """Enter a request that waits, so that the checkpoint that serves it can count it; to be said again and again."""
    store.script(_WAIT, [store.keys["waiting"], store.keys["seen"]], request, at_ms)


def leave_line(store: Store, request: str) -> None:
    """Take a request out of the line."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=False)
        pipe.zrem(store.keys["waiting"], request).zrem(store.keys["seen"], request).execute()


def waiting_until(store: Store, at_ms: int, *, beside: str) -> int:
    """Count the requests made at or before ``at_ms`` that still wait, the one ``beside`` which they do left out."""
    return int(store.script(_COUNT, [store.keys["waiting"], store.keys["seen"]], at_ms, beside, _UNSEEN_MS)[0])


def announce(store: Store, freeze_ms: int, document: dict[str, Any]) -> None:
    """Say which checkpoint was sealed last, and when its freeze began."""
    with store.speaking() as client:
        client.set(store.keys["sealed"], json.dumps({"freeze_ms": freeze_ms, "document": document}))


def served(store: Store, at_ms: int) -> dict[str, Any] | None:
    """Return the checkpoint whose freeze began after ``at_ms``, or None."""
    with store.speaking() as client:
        found = client.get(store.keys["sealed"])
    record = json.loads(found) if found else None
    document: dict[str, Any] | None = record["document"] if record and record["freeze_ms"] > at_ms else None
    return document


def tell_outcome(store: Store, request: str, document: dict[str, Any]) -> None:
    """Leave the outcome of a request for whoever follows it, with or without a result backend."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=True)
        pipe.rpush(store.keys["outcome:" + request], json.dumps(document))
        pipe.expire(store.keys["outcome:" + request], OUTCOME_TTL_S)
        pipe.execute()


def outcome(store: Store, request: str) -> dict[str, Any] | None:
    """Return the outcome of a request, or None as long as there is none."""
    with store.speaking() as client:
        found = client.lindex(store.keys["outcome:" + request], 0)
    document: dict[str, Any] | None = json.loads(found) if found else None
    return document
