"""One Redis client per process and federation, and the keys that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lych_checkpoint.errors import Away, Refused

#: Longest wait for one answer. Below the second by which a worker may outlive its lease (I3).
ANSWER_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys of one federation; braces keep them in one slot of a Redis Cluster."""

    uuid: str

    def __getitem__(self, name: str) -> str:
        return f"lych:{{{self.uuid}}}:{name}"

    def acks(self, epoch: int) -> str:
        """Hash of acks of one freeze: boot id → expiry in ms, a space, the ack's JSON."""
        return self[f"acks:{epoch}"]

    def wake(self, epoch: int) -> str:
        """List on which the coordinator of one freeze blocks."""
        return self[f"wake:{epoch}"]


class Store:
    """A client and its keys. Safe in threads; after a fork the client makes new connections by itself."""

    def __init__(self, url: str, uuid: str, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.keys = Keys(uuid)
        self._scripts: dict[str, Any] = {}
        parts = urlsplit(url)
        self.where = f"redis {parts.hostname or parts.path}:{parts.port or 6379}"
        self.client: redis.Redis = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=answer_timeout_s, socket_connect_timeout=answer_timeout_s,
            # A lost connection is made again at once; a server that does not answer is not asked twice.
            retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)), health_check_interval=0,
        )

    @contextmanager
    def speaking(self) -> Iterator[Any]:  # redis-py's types ignore decode_responses
        """Give the client, and turn its errors into ours.

        Raises:
            Away: Redis cannot be reached, does not answer, or is loading.
            Refused: Redis answered with an error (no memory, read-only replica, no permission).
        """
        try:
            yield self.client
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise Away(f"Redis cannot be reached: {error}", self.where, "start Redis or correct LYCH_REDIS_URL",
                       "redis-away") from error
        except redis.RedisError as error:
            raise Refused(f"Redis refused: {error}", self.where, "see `lych-checkpoint doctor`",
                          "redis-refused") from error

    def script(self, text: str, keys: list[str], *arguments: str | int) -> list[str]:
        """Run a Lua script atomically; its answer is a list of strings."""
        with self.speaking() as client:
            if text not in self._scripts:
                self._scripts[text] = client.register_script(text)
            answer = self._scripts[text](keys=keys, args=list(arguments))
        return ["" if one is None else str(one) for one in answer]

    def now_ms(self) -> int:
        """Redis's clock in milliseconds: the one clock that all hosts share."""
        with self.speaking() as client:
            seconds, micros = client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def facts(self) -> dict[str, Any]:
        """Return what the server says of itself (INFO), and ``saves``: its snapshot rule, where it tells."""
        with self.speaking() as client:
            found: dict[str, Any] = dict(client.info())
        try:
            found["saves"] = self.client.config_get("save").get("save", "")
        except redis.RedisError:  # managed servers forbid CONFIG
            found["saves"] = "unknown"
        return found

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()
