"""The federation under test: servers, wires, workers of several pools, the load, and the watch on the leases."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from celery import Celery

from ops.chaos import brokers
from ops.chaos.checker import Lease
from ops.chaos.proxy import Exchange, Wire, exchange
from ops.servers.celery import CeleryProcess, command
from ops.servers.child import ServerError
from ops.servers.postgres import PostgresNode
from ops.servers.redis import RedisNode

POOLS = {"prefork": 2, "threads": 2, "solo": 1, "gevent": 3}
LEASE_S = 2.0
_WATCH_EVERY_S = 0.02
_CHECKOUT = Path(__file__).parents[2]


@dataclass(slots=True)
class Seat:
    """One worker's place: its wires stay while processes come and go."""

    name: str
    pool: str
    lease_wire: Wire
    broker_wire: Wire
    process: CeleryProcess | None = None
    starts: int = 0

    @property
    def runs(self) -> bool:
        """Whether it has a process that has not ended."""
        return self.process is not None and self.process.exit_code is None


@contextmanager
def raised(kind: str) -> Iterator[Ground]:
    """Raise everything over that kind of broker, in a temporary directory that stays where the `with` fails."""
    home = Path(tempfile.mkdtemp(prefix="lych-chaos-"))
    home.chmod(0o711)
    with ExitStack() as stack:
        (home / "server").mkdir(mode=0o711)
        (home / "records").mkdir()
        postgres = stack.enter_context(PostgresNode.start_new(home / "server"))
        broker = stack.enter_context(brokers.started(kind, home / "broker"))
        leases = stack.enter_context(RedisNode.start_new(home / "leases"))
        yield Ground(home, kind, postgres, broker, leases, stack.enter_context(exchange()), stack)
    shutil.rmtree(home)


class Ground:
    """What chaos works on. ``broker`` carries messages, ``leases`` the freeze: each can fail without the other."""

    def __init__(
        self, home: Path, kind: str, postgres: PostgresNode, broker: brokers.Node, leases: RedisNode,
        wires: Exchange, stack: ExitStack,
    ) -> None:
        self.home, self.records, self.kind = home, home / "records", kind
        self.broker, self.leases = broker, leases
        self._wires, self._stack = wires, stack
        core = home / "federation" / "core"
        core.mkdir(parents=True)
        (core / "README").write_text("the core\n")
        who = {f"GIT_{role}_{what}": "chaos@example.org" for role in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")}
        for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
            subprocess.run(["git", "-C", core, *arguments], check=True, env={**os.environ, **who})
        self.vault = home / "vault"
        self.coordinator_wire = wires.wire(leases.port)
        self.environment = {
            "PYTHONPATH": str(_CHECKOUT), "LYCH_FEDERATION": "chaos", "LYCH_DRIVER": "dump",
            "LYCH_REDIS_URL": _url(self.coordinator_wire.port), "LYCH_DATABASE_URL": postgres.url("soul"),
            "LYCH_ROOT": str(core.parent), "LYCH_VAULT": str(self.vault), "LYCH_PG_BIN": str(postgres.pg_bin),
            "LYCH_LEASE_S": str(LEASE_S), "LYCH_ACK_TIMEOUT_S": "1.5", "LYCH_DRAIN_TIMEOUT_S": "3",
            "LYCH_TEST_BROKER_KIND": kind, "LYCH_TEST_BROKER_URL": broker.url, "LYCH_TEST_RECORDS": str(self.records),
        }
        postgres.run("createdb", "soul")
        done = command("lych_checkpoint", "init", "--json", environment=self.environment, cwd=home)
        if done.returncode:
            raise ServerError(f"lych-checkpoint init: {done.stderr.strip()[-1000:]}")
        self.uuid = str(json.loads(done.stdout)["uuid"])
        self.seats: list[Seat] = []

    def seat(self, name: str, pool: str) -> Seat:
        """Make a worker's place, with wires of its own; no process yet."""
        made = Seat(name, pool, self._wires.wire(self.leases.port), self._wires.wire(self.broker.port))
        self.seats.append(made)
        return made

    def start(self, seat: Seat) -> None:
        """Start a worker on its seat; it is not ready yet."""
        seat.starts += 1
        broker_url = self.broker.url.replace(f":{self.broker.port}/", f":{seat.broker_wire.port}/")
        directory = self.home / "logs" / str(seat.starts)
        directory.mkdir(parents=True, exist_ok=True)
        seat.process = self._stack.enter_context(CeleryProcess.worker(
            "ops.chaos.app", seat.name, directory=directory, pool=seat.pool, concurrency=POOLS[seat.pool],
            environment={**self.environment, "LYCH_REDIS_URL": _url(seat.lease_wire.port),
                         "LYCH_TEST_BROKER_URL": broker_url},
        ))

    def lines(self, name: str) -> list[str]:
        """Return the lines of one file of records."""
        path = self.records / name
        return path.read_text().splitlines() if path.exists() else []


def kill_group(seat: Seat) -> None:
    """End a worker and all its children with SIGKILL, if it runs."""
    if seat.process is not None:
        with suppress(ProcessLookupError):
            os.killpg(seat.process.pid, signal.SIGKILL)
        seat.process.wait_exit(10)


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Load:
    """Publishes messages at a steady rate, directly to the broker, and remembers those that it took."""

    def __init__(self, ground: Ground, rate: float) -> None:
        self._app = Celery("chaos", broker=ground.broker.url, set_as_current=False)
        self._app.conf.update(brokers.configuration(ground.kind))
        self._rate = rate
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="chaos-load", daemon=True)
        self.published: list[int] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Publish no more."""
        self._done.set()
        self._thread.join(20)

    def _publish(self) -> None:
        tag = 0
        while not self._done.wait(1 / self._rate):
            tag += 1
            steps = 60 if tag % 41 == 0 else 1 + tag % 5
            try:
                self._app.send_task("work", args=[tag, steps, 0.02], kwargs={"parks": steps > 5}, retry=False)
            except Exception:  # whatever kombu raises: the broker did not take it, so nothing is owed
                continue
            self.published.append(tag)


class Watch:
    """Looks at the lease all the time, past every wire."""

    def __init__(self, url: str, uuid: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=0.2)
        self._key = f"lych:{{{uuid}}}:lease"
        self._found: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._done.set()
        self._thread.join(5)

    @property
    def leases(self) -> list[Lease]:
        """All that were seen."""
        with self._lock:
            return list(self._found.values())

    def look(self) -> str:
        """Look once, now; returns the lease's token, or an empty text."""
        with suppress(redis.RedisError), self._lock:
            pipe = self._client.pipeline(transaction=True)
            pipe.hget(self._key, "token")
            pipe.pttl(self._key)
            token, left_ms = pipe.execute()
            if token:
                ends_at = time.time() + left_ms / 1000
                known = self._found.get(token, Lease(time.time(), ends_at))
                self._found[token] = Lease(known.seen_at, max(known.ends_at, ends_at))
                return str(token)
        return ""

    def _run(self) -> None:
        while not self._done.wait(_WATCH_EVERY_S):
            self.look()


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"
