"""The roster: every worker that lives, what it acked, and the one transaction that ends a window well."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from lych_checkpoint.lease.connection import Store
from lych_checkpoint.lease.lease import LeaseFacts
from lych_checkpoint.process import Identity

#: How often a worker tells Redis that it lives and reads the lease.
HEARTBEAT_S = 0.5
#: A worker that slept longer than this starts nothing before it has looked at the lease again.
LICENCE_S = 2 * HEARTBEAT_S
#: A roster younger than this is not trusted, for a worker may still be on its way back into it: one that renewed its
#: licence by an answer from just before Redis was emptied, and then slept.
TRUST_S = LICENCE_S + HEARTBEAT_S

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
"""
# One heartbeat: registers (again), then reads the lease, in one step.
# KEYS roster, beats, born, lease, journal, restored, thawed; ARGV boot, entry
# Returns {now, born, journal, restored, thawed, pttl, field, value…}
_BEAT = _NOW + """
redis.call('SET', KEYS[3], text(now), 'NX')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], text(now), ARGV[1])
local answer = {text(now), redis.call('GET', KEYS[3]), redis.call('GET', KEYS[5]) or '',
  redis.call('GET', KEYS[6]) or '0', text(redis.call('EXISTS', KEYS[7])), text(redis.call('PTTL', KEYS[4]))}
for _, part in ipairs(redis.call('HGETALL', KEYS[4])) do answer[#answer + 1] = part end
return answer
"""
# KEYS lease, acks, wake; ARGV boot, token, until_ms, ack JSON. Writes nothing when that lease is gone.
# The expiry written with the ack is the one that the worker honours already: were it told only in the answer, an
# answer that is lost would leave an ack that nobody keeps.
_ACK = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return {} end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3] .. ' ' .. ARGV[4])
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('LTRIM', KEYS[3], -1000, -1)
redis.call('PEXPIRE', KEYS[2], 3600000)
redis.call('PEXPIRE', KEYS[3], 3600000)
return {}
"""
# KEYS roster, beats, lease; ARGV boot, token of a freeze that this worker broke…
_LEAVE = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
local token = redis.call('HGET', KEYS[3], 'token')
for i = 2, #ARGV do if ARGV[i] == token then redis.call('HSET', KEYS[3], 'spoilt', '1') end end
return {}
"""
# KEYS lease, roster, acks, parked, born; ARGV token, trust_ms, number gone, boots gone…, task ids let through…
# Returns {now, until, problem, problem…}; no problem means that the window ended well at `now`, and that every
# barrier stays closed until `until` unless the lease is ended before.
_CONFIRM = _NOW + """
local epoch, ends = redis.call('HGET', KEYS[1], 'epoch'), now + redis.call('PTTL', KEYS[1])
local answer = {text(now), text(now)}
local function problem(line) answer[#answer + 1] = line end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then problem('lease: not ours any more') return answer end
if ends <= now then problem('lease: it ends this very moment') end
if redis.call('HEXISTS', KEYS[1], 'spoilt') == 1 then problem('a worker: it opened in between, and left') end
local born = tonumber(redis.call('GET', KEYS[5]) or now)
if now - born < tonumber(ARGV[2]) then problem('roster: Redis was emptied a moment ago') end
local gone, through, count = {}, {}, tonumber(ARGV[3])
for i = 4, 3 + count do gone[ARGV[i]] = true end
for i = 4 + count, #ARGV do through[ARGV[i]] = true end
for _, boot in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not gone[boot] then
    local found = redis.call('HGET', KEYS[3], boot)
    if not found then problem(boot .. ': no ack') else
      local gap = string.find(found, ' ', 1, true)
      local ack = cjson.decode(string.sub(found, gap + 1))
      local expiry = tonumber(string.sub(found, 1, gap - 1))
      if expiry <= now then problem(boot .. ': its ack expired') end
      ends = math.min(ends, expiry)
      if ack.broken then problem(boot .. ': it opened in between') end
      for _, id in ipairs(ack.in_flight) do
        local of, record = string.match(redis.call('HGET', KEYS[4], id) or '', '^(%S+) (.*)$')
        local counts = (of == '*' or of == epoch) and cjson.decode(record).boot == boot
        if not through[id] and not counts then problem(boot .. ': task ' .. id .. ' runs') end
      end
    end
  end
end
answer[2] = text(ends)
return answer
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One worker in the roster.

    ``alive_file`` is a file that the worker and all its pool children keep locked: whoever can lock it has proof, on
    that host, that all of them are dead. ``loaded`` is the signature of the code that the worker imported,
    ``disk`` that of the code on its disk.
    """

    name: str
    boot: str
    pool: str
    identity: Identity
    alive_file: str
    loaded: str
    disk: str
    generation: int
    state: str = "thawed"
    in_flight: int = 0
    parked: int = 0

    def dumps(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Entry:
        """Read the JSON text back."""
        record = json.loads(text)
        return cls(**{**record, "identity": Identity(**record["identity"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What a worker says with its barrier closed.

    ``in_flight`` are the ids of tasks that started and have not ended, exempt ones apart; ``since_ms`` when they did,
    by Redis's clock. ``broken``: it opened by expiry under this very token, so no ack of it counts any more.
    """

    in_flight: tuple[str, ...]
    tasks: dict[str, str]
    exempt: tuple[str, ...]
    broken: bool
    since_ms: dict[str, int] = field(default_factory=dict, compare=False)

    def dumps(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Ack:
        """Read the JSON text back."""
        record = json.loads(text)
        return cls(in_flight=tuple(record["in_flight"]), tasks=record["tasks"], exempt=tuple(record["exempt"]),
                   broken=record["broken"], since_ms=record["since_ms"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one heartbeat saw."""

    now_ms: int
    born_ms: int
    journal: str
    restored: int
    thawed: bool
    lease: LeaseFacts | None


def beat(store: Store, entry: Entry, token: str) -> Look:
    """Register, then read the lease. ``token`` is the freeze the worker is in, or empty."""
    keys = store.keys
    answer = store.script(
        _BEAT, [keys["roster"], keys["beats"], keys["born"], keys["lease"], keys["journal"], keys["restored"],
                keys["thawed:" + token]], entry.boot, entry.dumps(),
    )
    record = dict(zip(answer[6::2], answer[7::2], strict=True))
    return Look(now_ms=int(answer[0]), born_ms=int(answer[1]), journal=answer[2], restored=int(answer[3]),
                thawed=answer[4] == "1", lease=LeaseFacts.of(record, int(answer[5])))


def ack(store: Store, epoch: int, token: str, boot: str, until_ms: int, what: Ack) -> None:
    """Write an ack, unless that lease is gone. ``until_ms``: until when its worker keeps it, by Redis's clock."""
    keys = store.keys
    store.script(_ACK, [keys["lease"], keys.acks(epoch), keys.wake(epoch)], boot, token, until_ms, what.dumps())


def acks(store: Store, epoch: int) -> dict[str, Ack]:
    """Return all acks of a freeze by boot id."""
    with store.speaking() as client:
        found = client.hgetall(store.keys.acks(epoch))
    return {boot: Ack.loads(text.partition(" ")[2]) for boot, text in found.items()}


def confirm(store: Store, token: str, epoch: int, gone: set[str], through: set[str]) -> tuple[int, int, list[str]]:
    """Look at lease and every ack in one transaction, after the capture.

    Returns:
        Redis's time in ms; until when, in ms, every worker honours its ack; and the problems in words, each led by
        the boot id. None means that the lease was ours and every worker's barrier closed, drained and sure to stay
        closed past that time.
    """
    keys = store.keys
    answer = store.script(
        _CONFIRM, [keys["lease"], keys["roster"], keys.acks(epoch), keys["parked"], keys["born"]],
        token, int(TRUST_S * 1000), len(gone), *sorted(gone), *sorted(through),
    )
    return int(answer[0]), int(answer[1]), answer[2:]


def entries(store: Store) -> dict[str, Entry]:
    """Return the roster by boot id."""
    with store.speaking() as client:
        found: dict[str, str] = client.hgetall(store.keys["roster"])
    return {boot: Entry.loads(text) for boot, text in found.items()}


def beats_ms(store: Store) -> dict[str, int]:
    """Return when each worker last looked, by Redis's clock."""
    with store.speaking() as client:
        found: list[tuple[str, float]] = client.zrange(store.keys["beats"], 0, -1, withscores=True)
    return {boot: int(at) for boot, at in found}


def leave(store: Store, boot: str, broken: Iterable[str] = ()) -> None:
    """Take a worker out of the roster: it ended in order, or is proven gone.

    ``broken`` are the tokens of freezes in which it opened by expiry. Its ack goes with its entry, yet such a freeze,
    if it is the one in force, must not end well for that.
    """
    keys = store.keys
    store.script(_LEAVE, [keys["roster"], keys["beats"], keys["lease"]], boot, *sorted(broken))
