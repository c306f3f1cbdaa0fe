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
# Writes nothing when that lease is gone. The coordinator is woken when every worker has acked; a dead one's place it
# finds by itself. The expiry written with the ack is the one that the worker honours already: were it told only in
# the answer, an answer that is lost would leave an ack that nobody keeps.
_WRITE_ACK = """
local function write_ack(lease, acks, wake, roster, boot, token, until_ms, what)
  if redis.call('HGET', lease, 'token') ~= token then return end
  redis.call('HSET', acks, boot, until_ms .. ' ' .. what)
  redis.call('PEXPIRE', acks, 3600000)
  if redis.call('HLEN', acks) >= redis.call('HLEN', roster) then
    redis.call('RPUSH', wake, boot)
    redis.call('LTRIM', wake, -1000, -1)
    redis.call('PEXPIRE', wake, 3600000)
  end
end
"""
# One heartbeat: registers (again), acks where the worker is in a freeze, then reads the lease, in one step.
# A wiped Redis learns the generation of the last restore again from whoever knows it.
# KEYS roster, beats, born, lease, journal, restored, thawed, acks, wake;
# ARGV boot, entry, era, token or "", until_ms, ack
# Returns {now, born, journal, restored, thawed, pttl, field, value…}
_BEAT = _NOW + _WRITE_ACK + """
redis.call('SET', KEYS[3], text(now), 'NX')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], text(now), ARGV[1])
if tonumber(redis.call('GET', KEYS[6]) or '-1') < tonumber(ARGV[3]) then redis.call('SET', KEYS[6], ARGV[3]) end
if ARGV[4] ~= '' then write_ack(KEYS[4], KEYS[8], KEYS[9], KEYS[1], ARGV[1], ARGV[4], ARGV[5], ARGV[6]) end
local answer = {text(now), redis.call('GET', KEYS[3]), redis.call('GET', KEYS[5]) or '',
  redis.call('GET', KEYS[6]) or '0', text(redis.call('EXISTS', KEYS[7])), text(redis.call('PTTL', KEYS[4]))}
for _, part in ipairs(redis.call('HGETALL', KEYS[4])) do answer[#answer + 1] = part end
return answer
"""
# KEYS lease, acks, wake, roster; ARGV boot, token, until_ms, ack JSON
_ACK = _WRITE_ACK + """
write_ack(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
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
# KEYS lease, roster, acks, parked, born; ARGV token, trust_ms, number gone, boots gone…, let through: "boot task"…
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
        if not through[boot .. ' ' .. id] and not counts then problem(boot .. ': task ' .. id .. ' runs') end
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
    ``disk`` that of the code on its disk; ``era`` is the generation that the last restore before its start made.
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
    exempt: int = 0
    era: int = 0

    def dumps(self) -> str:
        """Return the JSON text."""
        return json.dumps({**_shallow(self), "identity": asdict(self.identity)})

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
        return json.dumps(_shallow(self))

    @classmethod
    def loads(cls, text: str) -> Ack:
        """Read the JSON text back."""
        record = json.loads(text)
        return cls(in_flight=tuple(record["in_flight"]), tasks=record["tasks"], exempt=tuple(record["exempt"]),
                   broken=record["broken"], since_ms=record["since_ms"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An ack with the freeze it is for, kept until ``until_ms`` by Redis's clock."""

    token: str
    epoch: int
    until_ms: int
    ack: Ack


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one heartbeat saw."""

    now_ms: int
    born_ms: int
    journal: str
    restored: int
    thawed: bool
    lease: LeaseFacts | None


def beat(store: Store, entry: Entry, claim: Claim | None = None) -> Look:
    """Register, ack the freeze that the worker is in, if any, and read the lease."""
    keys, token, epoch = store.keys, claim.token if claim else "", claim.epoch if claim else 0
    answer = store.script(
        _BEAT, [keys["roster"], keys["beats"], keys["born"], keys["lease"], keys["journal"], keys["restored"],
                keys["thawed:" + token], keys.acks(epoch), keys.wake(epoch)],
        entry.boot, entry.dumps(), entry.era, token, claim.until_ms if claim else 0,
        claim.ack.dumps() if claim else "",
    )
    record = dict(zip(answer[6::2], answer[7::2], strict=True))
    return Look(now_ms=int(answer[0]), born_ms=int(answer[1]), journal=answer[2], restored=int(answer[3]),
                thawed=answer[4] == "1", lease=LeaseFacts.of(record, int(answer[5])))


def ack(store: Store, boot: str, claim: Claim) -> None:
    """Write an ack, unless that lease is gone."""
    keys = store.keys
    store.script(_ACK, [keys["lease"], keys.acks(claim.epoch), keys.wake(claim.epoch), keys["roster"]],
                 boot, claim.token, claim.until_ms, claim.ack.dumps())


def call(store: Store, epoch: int) -> tuple[dict[str, Entry], dict[str, Ack]]:
    """Return, by boot id, the roster, read first, and all acks of a freeze."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=False)
        known, heard = pipe.hgetall(store.keys["roster"]).hgetall(store.keys.acks(epoch)).execute()
    return ({boot: Entry.loads(text) for boot, text in known.items()},
            {boot: Ack.loads(text.partition(" ")[2]) for boot, text in heard.items()})


def silent(store: Store, epoch: int) -> set[str]:
    """Return the boot ids in the roster, read first, that have not acked that freeze."""
    with store.speaking() as client:
        pipe = client.pipeline(transaction=False)
        known, heard = pipe.hkeys(store.keys["roster"]).hkeys(store.keys.acks(epoch)).execute()
    return set(known) - set(heard)


def woken(store: Store, epoch: int, longest_s: float) -> bool:
    """Block until an ack or a parked task wants to be looked at; False when none did in that time."""
    with store.speaking() as client:
        found = client.blpop([store.keys.wake(epoch)], timeout=longest_s)
    return found is not None


def confirm(
    store: Store, token: str, epoch: int, gone: set[str], through: Iterable[tuple[str, str]],
) -> tuple[int, int, list[str]]:
    """Look at lease and every ack in one transaction, after the capture.

    ``through`` are boot id and task id of those that may run.

    Returns:
        Redis's time in ms; until when, in ms, every worker honours its ack; and the problems in words, each led by
        the boot id. None means that the lease was ours and every worker's barrier closed, drained and sure to stay
        closed past that time.
    """
    keys = store.keys
    answer = store.script(
        _CONFIRM, [keys["lease"], keys["roster"], keys.acks(epoch), keys["parked"], keys["born"]],
        token, int(TRUST_S * 1000), len(gone), *sorted(gone), *sorted(map(" ".join, through)),
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


def _shallow(record: Entry | Ack) -> dict[str, object]:
    """Return the fields as they are: ``asdict`` copies deeply, which is half of what a worker does for an ack."""
    return {name: getattr(record, name) for name in record.__slots__}
