"""A federation to measure on: servers, one small repository, a vault; and `create` as a user would call it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
from ops.servers.celery import CeleryProcess, command
from ops.servers.child import ServerError
from ops.servers.filesystems import Kind, is_btrfs, loop_mount, make_pgdata_subvolume, remove_with_subvolumes
from ops.servers.postgres import PostgresNode
from ops.servers.redis import RedisNode

_APP = Path(__file__).parent / "app.py"


def rounds(default: int) -> int:
    """Return how many times to measure each thing: LYCH_BENCH_ROUNDS, or ``default``."""
    return int(os.environ.get("LYCH_BENCH_ROUNDS", default))


@contextmanager
def place(size_gb: int = 8, kind: Kind = "btrfs") -> Iterator[Path]:
    """Yield a directory below LYCH_BENCH_DIR, else on a file system of its own under root, else a temporary one."""
    with ExitStack() as stack:
        parent = os.environ.get("LYCH_BENCH_DIR")
        if parent is None and os.geteuid() == 0:
            parent = str(stack.enter_context(loop_mount(kind, size_gb=size_gb)))
        home = Path(tempfile.mkdtemp(prefix="lych-bench-", dir=parent))
        home.chmod(0o711)
        stack.callback(remove_with_subvolumes if is_btrfs(home) else shutil.rmtree, home)
        yield home


def make_repository(directory: Path) -> None:
    """Make a repository of what lies in ``directory``, or commit what changed there."""
    who = {f"GIT_{role}_{what}": "bench@example.org" for role in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}
    first = [] if (directory / ".git").exists() else [["init", "-q", "-b", "main"]]
    for arguments in [*first, ["add", "-A"], ["commit", "-q", "-m", "More"]]:
        subprocess.run(["git", "-C", directory, *arguments], check=True, env={**os.environ, **who})


class Ground:
    """Servers that run, a database `soul`, a repository and a vault below ``home``."""

    def __init__(self, home: Path, stack: ExitStack, options: Mapping[str, str] | None = None) -> None:
        self._stack = stack
        self.home = home
        (home / "server").mkdir(mode=0o711)
        (home / "tmp").mkdir(mode=0o711)
        (home / "logs").mkdir()
        if is_btrfs(home):
            make_pgdata_subvolume(home / "server" / "pgdata")
        self.postgres = stack.enter_context(PostgresNode.start_new(home / "server", options=options))
        self.broker = stack.enter_context(RedisNode.start_new(home))
        core = home / "federation" / "core"
        core.mkdir(parents=True)
        shutil.copy(_APP, core / "bench_app.py")
        (core / ".gitignore").write_text("__pycache__/\n")
        make_repository(core)
        self.environment = {
            "PYTHONPATH": str(core), "TMPDIR": str(home / "tmp"),
            "LYCH_FEDERATION": "bench", "LYCH_REDIS_URL": self.broker.url,
            "LYCH_DATABASE_URL": self.postgres.url("soul"), "LYCH_ROOT": str(core.parent),
            "LYCH_VAULT": str(home / "vault"), "LYCH_PGDATA": str(self.postgres.pgdata),
            "LYCH_PG_BIN": str(self.postgres.pg_bin),
            "LYCH_BENCH_PGBENCH": json.dumps([str(self.postgres.pg_bin / "pgbench")]),
            **self.postgres.client_environment(),
        }
        self.postgres.run("createdb", "soul")
        self.lych("init")

    def versions(self) -> dict[str, str]:
        """Return the servers' versions."""
        with redis.Redis.from_url(self.broker.url) as client:
            info = client.info("server")
        return {
            "postgres": self.postgres.run("postgres", "--version").split()[2],
            str(info.get("server_name", "redis")): str(info.get("valkey_version", info["redis_version"])),
            "git": subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout.split()[2],
        }

    def start_workers(self, names: list[str], *, pool: str, concurrency: int = 1) -> list[CeleryProcess]:
        """Start workers, eight at a time, and return when all are ready; they end with the ground."""
        workers = []
        for first in range(0, len(names), 8):
            some = [
                self._stack.enter_context(CeleryProcess.worker(
                    "bench_app", name, directory=self.home / "logs", environment=self.environment, pool=pool,
                    concurrency=concurrency,
                ))
                for name in names[first:first + 8]
            ]
            workers += [one.wait_ready(120) for one in some]
        return workers

    def open(self) -> Federation:
        """Open the federation in this process, to freeze without an interpreter's start."""
        os.environ.update({name: value for name, value in self.environment.items() if name.startswith("LYCH_")})
        return Federation(Settings.load())

    def create(self, driver: str = "dump") -> dict[str, Any]:
        """Create a checkpoint in a process of its own and return its document."""
        made: dict[str, Any] = self.lych("create", "--here", LYCH_DRIVER=driver)
        return made

    def lych(self, *argv: str, **environment: str) -> Any:
        """Run `lych-checkpoint ARGV… --json`.

        Raises:
            ServerError: it ended non-zero.
        """
        done = command("lych_checkpoint", *argv, "--json", environment={**self.environment, **environment},
                       cwd=self.home, timeout_s=900)
        if done.returncode:
            raise ServerError(f"lych-checkpoint {' '.join(argv)}: {(done.stderr or done.stdout).strip()[-1000:]}")
        return json.loads(done.stdout)
