"""A restore asks the other hosts whether they can follow: the question, and one answer per host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lych_checkpoint.lease.connection import Store

#: A question that nobody took back, since its restore was killed.
_LASTS_S = 600
_ASKED = "asked"
# KEYS follow; ARGV ticket, host, answer. Writes nothing when another question stands there by now.
_ANSWER = """
local asked = redis.call('HGET', KEYS[1], 'asked')
if asked and cjson.decode(asked).ticket == ARGV[1] then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
return {}
"""


@dataclass(frozen=True, slots=True)
class Question:
    """Has this host every one of these ``commits`` (path → commit), or the bundles of ``checkpoint``?"""

    ticket: str
    checkpoint: str
    commits: dict[str, str]


def ask(store: Store, ticket: str, checkpoint: str, commits: Mapping[str, str]) -> None:
    """Ask all hosts; an older question and its answers go."""
    key = store.keys["follow"]
    record = json.dumps({"ticket": ticket, "checkpoint": checkpoint, "commits": dict(commits)})
    with store.speaking() as client:
        client.pipeline().delete(key).hset(key, _ASKED, record).expire(key, _LASTS_S).execute()


def asked(store: Store, host: str) -> Question | None:
    """Return the question that ``host`` has not answered yet."""
    with store.speaking() as client:
        record, answer = client.hmget(store.keys["follow"], [_ASKED, f"host {host}"])
    return Question(**json.loads(record)) if record and answer is None else None


def answer(store: Store, question: Question, host: str, lacking: list[str]) -> None:
    """Say which repositories' commits ``host`` lacks."""
    store.script(_ANSWER, [store.keys["follow"]], question.ticket, f"host {host}", json.dumps(lacking))


def answers(store: Store) -> dict[str, list[str]]:
    """Return by host what it lacks."""
    with store.speaking() as client:
        found = client.hgetall(store.keys["follow"])
    return {name.removeprefix("host "): json.loads(text) for name, text in found.items() if name != _ASKED}


def take_back(store: Store) -> None:
    """Forget the question."""
    with store.speaking() as client:
        client.delete(store.keys["follow"])
