"""The lease: the Redis record of a freeze, and the truth behind the bells.

It is a hash with the expiry of the freeze. Whoever holds its random token may renew, advance or end it; nobody else.
A renewal extends an existing record and never creates one, so a coordinator that slept past its lease cannot come
back to life.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from lych_checkpoint.errors import FreezeError, RestoreOpen
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.records import VERSION

#: The last explicit thaws are remembered this long, for workers that fail closed and missed the bell.
THAWED_TTL_MS = 3_600_000

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
"""
# KEYS lease, epoch, born, bell
# ARGV token, mode, reason, coordinator JSON, lowest epoch, ttl_ms, version
# Returns {"taken", epoch, now_ms, born_ms} or {"held", mode, pttl}. The bell's words are read by `News`.
TAKE = _NOW + """
redis.call('SET', KEYS[3], text(now), 'NX')
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {'held', redis.call('HGET', KEYS[1], 'mode'), text(redis.call('PTTL', KEYS[1]))}
end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[5]), t[1] * 1000000 + t[2]) + 1
redis.call('SET', KEYS[2], text(epoch))
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'mode', ARGV[2], 'reason', ARGV[3], 'coordinator', ARGV[4],
  'epoch', text(epoch), 'phase', 'freezing', 'since_ms', text(now), 'version', ARGV[7])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PUBLISH', KEYS[4], table.concat({'freeze', text(epoch), ARGV[1], ARGV[2], text(now), ARGV[6]}, ' '))
return {'taken', text(epoch), text(now), redis.call('GET', KEYS[3])}
"""
# KEYS lease; ARGV token, ttl_ms, phase or "". Returns {now_ms} or {"0"}; never shortens, never creates. In its last
# millisecond a lease exists and has nothing left: workers take it for ended, so it must not come back.
RENEW = _NOW + """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'0'} end
local left = redis.call('PTTL', KEYS[1])
if left <= 0 then return {'0'} end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'phase', ARGV[3]) end
if left < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {text(now)}
"""
# KEYS lease, bell, thawed; ARGV token, ttl_ms of the thaw's record. Returns {"1", now_ms} or {"0", now_ms}.
DROP = _NOW + """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'0', text(now)} end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', KEYS[2], 'thaw ' .. epoch)
return {'1', text(now)}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFacts:
    """What Redis says about the freeze in force. ``expires_in_ms`` counts from the moment of reading."""

    token: str
    epoch: int
    mode: str
    phase: str
    reason: str
    coordinator: dict[str, Any]
    since_ms: int
    expires_in_ms: int

    @classmethod
    def of(cls, record: dict[str, str], pttl_ms: int) -> LeaseFacts | None:
        """Read the hash; None where there is no lease."""
        if not record or pttl_ms <= 0:
            return None
        return cls(
            token=record["token"], epoch=int(record["epoch"]), mode=record["mode"], phase=record["phase"],
            reason=record["reason"], coordinator=json.loads(record["coordinator"]),
            since_ms=int(record["since_ms"]), expires_in_ms=pttl_ms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A lease just taken."""

    token: str
    epoch: int
    at_ms: int
    born_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the plugin's own bell tells of a lease: as it was at ``at_ms``, when it was written."""

    token: str
    epoch: int
    mode: str
    at_ms: int
    expires_in_ms: int

    @classmethod
    def of(cls, message: str) -> News | None:
        """Read the bell's words; None for a thaw's, and for what the plugin never says."""
        words = message.split(" ")
        if len(words) != 6 or words[0] != "freeze" or not all(words[place].isdecimal() for place in (1, 4, 5)):
            return None
        return cls(epoch=int(words[1]), token=words[2], mode=words[3], at_ms=int(words[4]),
                   expires_in_ms=int(words[5]))


def take(store: Store, *, mode: str, reason: str, coordinator: dict[str, Any], lowest_epoch: int,
         lease_s: float) -> Taken:
    """Write the lease and ring the plugin's own bell, in one step. The roster that counts is read after it.

    Raises:
        FreezeError: another freeze is in force (code ``freeze-in-force``).
        RestoreOpen: that freeze is a restore's.
    """
    keys, token = store.keys, secrets.token_hex(16)
    answer = store.script(
        TAKE, [keys["lease"], keys["epoch"], keys["born"], keys["bell"]],
        token, mode, reason, json.dumps(coordinator), lowest_epoch, int(lease_s * 1000), VERSION,
    )
    if answer[0] == "held":
        if answer[1] == "restore":
            raise RestoreOpen("a restore holds the freeze", store.where, "lych-checkpoint recover")
        raise FreezeError(f"a freeze ({answer[1]}) is in force for {int(answer[2]) / 1000:.1f} s more", store.where,
                          "wait, or `lych-checkpoint thaw`", "freeze-in-force")
    return Taken(token=token, epoch=int(answer[1]), at_ms=int(answer[2]), born_ms=int(answer[3]))


def read(store: Store) -> LeaseFacts | None:
    """Return the freeze in force, or None."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=True)
        pipe.hgetall(store.keys["lease"])
        pipe.pttl(store.keys["lease"])
        record, pttl_ms = pipe.execute()
    return LeaseFacts.of(record, int(pttl_ms))


def renew(store: Store, token: str, lease_s: float, phase: str = "") -> int:
    """Extend the lease to at least ``lease_s`` from now; return Redis's time in ms, or 0: it is not ours any more."""
    return int(store.script(RENEW, [store.keys["lease"]], token, int(lease_s * 1000), phase)[0])


def drop(store: Store, token: str) -> tuple[bool, int]:
    """End the freeze and ring the plugin's own bell. Returns whether it was ours, and Redis's time in ms."""
    keys = store.keys
    answer = store.script(DROP, [keys["lease"], keys["bell"], keys["thawed:" + token]], token, THAWED_TTL_MS)
    return answer[0] == "1", int(answer[1])
