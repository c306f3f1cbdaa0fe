"""The demo's federation: servers, repositories, workers and beat in one directory that is gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis
from celery import Celery

from ops.demo.evolutions import BODY, REPOSITORIES, SCHEMA
from ops.demo.proof import MismatchError
from ops.servers.celery import CeleryProcess, command
from ops.servers.filesystems import is_btrfs, make_pgdata_subvolume, remove_with_subvolumes
from ops.servers.postgres import PostgresNode
from ops.servers.redis import RedisNode

_CHECKOUT = Path(__file__).parents[2]
_CALM_S, _PATIENCE_S = 0.2, 6
_GIT = {
    "GIT_AUTHOR_NAME": "Daemon", "GIT_AUTHOR_EMAIL": "daemon@example.org",
    "GIT_COMMITTER_NAME": "Daemon", "GIT_COMMITTER_EMAIL": "daemon@example.org",
}


@contextmanager
def raised() -> Iterator[System]:
    """Raise servers and body below LYCH_DEMO_DIR (or the temporary directory), and take all of it away after."""
    home = Path(tempfile.mkdtemp(prefix="lych-demo-", dir=os.environ.get("LYCH_DEMO_DIR")))
    home.chmod(0o711)  # under root the server runs as `nobody`
    on_btrfs = is_btrfs(home)
    try:
        with ExitStack() as stack:
            (home / "server").mkdir(mode=0o711)
            (home / "tmp").mkdir(mode=0o711)
            if on_btrfs:
                make_pgdata_subvolume(home / "server" / "pgdata")
            postgres = stack.enter_context(PostgresNode.start_new(home / "server"))
            broker = stack.enter_context(RedisNode.start_new(home))
            yield System(home, postgres, broker, stack, "btrfs" if on_btrfs else "dump")
    finally:
        (remove_with_subvolumes if on_btrfs else shutil.rmtree)(home)


class System:
    """Servers that run, repositories with one commit each, and hands to work them."""

    def __init__(self, home: Path, postgres: PostgresNode, broker: RedisNode, stack: ExitStack, driver: str) -> None:
        self.home = home
        self.root = home / "federation"
        self.postgres = postgres
        self.broker = broker
        self.driver = driver
        self.workers: dict[str, CeleryProcess] = {}
        self.environment = {
            **_GIT,
            "TMPDIR": str(home / "tmp"),
            "PYTHONPATH": os.pathsep.join(map(str, [_CHECKOUT, *(self.root / name for name in REPOSITORIES)])),
            "LYCH_FEDERATION": "demo",
            "LYCH_REDIS_URL": broker.url,
            "LYCH_DATABASE_URL": postgres.url("soul"),
            "LYCH_ROOT": str(self.root),
            "LYCH_VAULT": str(home / "vault"),
            "LYCH_PGDATA": str(postgres.pgdata),
            "LYCH_PG_BIN": str(postgres.pg_bin),
        }
        self._stack = stack
        self._redis = stack.enter_context(redis.Redis.from_url(broker.url))
        self._client = Celery("demo", broker=broker.url, backend=broker.url)

    def make_body(self) -> None:
        """Make the core and two extensions from this project's own texts, one commit each."""
        shutil.copytree(BODY, self.root, ignore=shutil.ignore_patterns("__pycache__"))
        for name in REPOSITORIES:
            (self.root / name / ".gitignore").write_text("__pycache__/\n")
            for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
                self.git(name, *arguments)

    def make_soul(self) -> None:
        """Make the database with its accounts."""
        self.postgres.run("createdb", "soul")
        with psycopg.connect(self.environment["LYCH_DATABASE_URL"]) as connection:
            connection.execute(SCHEMA.encode())

    def git(self, name: str, *arguments: str) -> str:
        """Run git in one repository and return its stripped stdout."""
        done = subprocess.run(
            ["git", "-C", self.root / name, *arguments],
            check=True, capture_output=True, text=True, env={**os.environ, **_GIT},
        )
        return done.stdout.strip()

    def lych(self, *argv: str) -> Any:
        """Run `lych-checkpoint ARGV… --json` and return its document.

        Raises:
            MismatchError: it ended non-zero.
        """
        done = command("lych_checkpoint", *argv, "--json", environment=self.environment, cwd=self.home)
        if done.returncode:
            raise MismatchError(f"lych-checkpoint {' '.join(argv)} ended with {done.returncode}:\n{_said(done)}")
        return json.loads(done.stdout)

    def ask(self, task: str, *arguments: Any) -> Any:
        """Run `celery call TASK`, as a person would, and return the task's result."""
        done = command("celery", "-A", "daemon", "call", task, "--args", json.dumps(arguments),
                       environment=self.environment, cwd=self.home)
        if done.returncode:
            raise MismatchError(f"celery call {task} ended with {done.returncode}:\n{_said(done)}")
        return self._client.AsyncResult(done.stdout.strip()).get(timeout=30, interval=0.02)

    def start_beat(self) -> None:
        """Start the beat; it only sends, so it lives through evolutions and restores."""
        beat = CeleryProcess.beat("daemon", directory=self._logs(), environment=self.environment)
        self._stack.enter_context(beat)

    def start(self, *names: str) -> None:
        """Start workers and return when they are ready."""
        for name in names:
            self.start_unready(name)
        for name in names:
            self.workers[name].wait_ready()

    def start_unready(self, name: str) -> CeleryProcess:
        """Start one worker without waiting."""
        self.workers[name] = self._stack.enter_context(
            CeleryProcess.worker("daemon", name, directory=self._logs(), environment=self.environment)
        )
        return self.workers[name]

    def dismiss(self) -> dict[str, CeleryProcess]:
        """Ask all workers to stop in good order, and return them.

        Celery 5.7 without any plugin: about one busy prefork worker in twenty hangs for ever in its warm shutdown,
        with its children idle. So they stop consuming first; `see_off` deals with one that hangs all the same.
        """
        leaving, self.workers = self.workers, {}
        if any(worker.exit_code is None for worker in leaving.values()):
            self._client.control.cancel_consumer("daemon", destination=[f"{name}@local" for name in leaving])
            time.sleep(_CALM_S)
        for worker in leaving.values():
            worker.ask_to_stop()
        return leaving

    def see_off(self, leaving: dict[str, CeleryProcess]) -> list[str]:
        """Wait for dismissed workers; return the names of those that hung, ran nothing, and were killed."""
        return [name for name, worker in leaving.items() if worker.stop(timeout_s=_PATIENCE_S) < 0]

    def stamps(self) -> list[dict[str, Any]]:
        """Return what every transfer wrote after its commit: `began`, `ended` (Unix seconds), `organ`, `version`."""
        return [json.loads(line) for line in self._redis.lrange("demo:stamps", 0, -1)]

    def wait_for_load(self, transfers: int = 20, timeout_s: float = 30) -> None:
        """Return when so many more transfers are done.

        Raises:
            MismatchError: they are not in time.
        """
        goal = self._redis.llen("demo:stamps") + transfers
        end_s = time.monotonic() + timeout_s
        while self._redis.llen("demo:stamps") < goal:
            if time.monotonic() > end_s:
                raise MismatchError(f"not even {transfers} transfers in {timeout_s:g} s")
            time.sleep(0.02)

    def left_behind(self) -> list[int]:
        """Return the processes that were started for this system and still run."""
        mark = str(self.home).encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:  # ended, or another user's
                continue
            if mark in said:
                found.append(int(process.name))
        return found

    def _logs(self) -> Path:
        logs = self.home / "logs"
        logs.mkdir(exist_ok=True)
        return logs


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip())[-2000:]
