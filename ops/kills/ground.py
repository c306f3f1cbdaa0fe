"""A small federation whose pairs can be told apart at a glance: one server, two repositories, no worker."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg

from lych_checkpoint import coordinator, gate
from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
from lych_checkpoint.setup import init
from lych_checkpoint.soul import Soul
from ops.servers.child import ServerError
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import PostgresNode
from ops.servers.redis import RedisNode

_REPOSITORIES = ("core", "extensions/alpha")
_WHO = {f"GIT_{role}_{what}": "kills@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass(frozen=True, slots=True)
class Pair:
    """Digests of what is live."""

    soul: str
    body: str


class Ground:
    """Servers below ``home``, a sealed checkpoint, and a present that moves on from it."""

    def __init__(self, home: Path, driver: str, stack: ExitStack) -> None:
        self.driver = driver
        self.vault = home / "vault"
        self.root = home / "federation"
        (home / "server").mkdir(mode=0o711)
        if driver == "btrfs":
            make_pgdata_subvolume(home / "server" / "pgdata")
        # Not as in production: power is not cut here, processes are killed.
        options = {"fsync": "off", "shared_buffers": "16MB", "max_wal_size": "64MB"}
        postgres = stack.enter_context(PostgresNode.start_new(home / "server", options=options))
        broker = stack.enter_context(RedisNode.start_new(home))
        postgres.run("createdb", "soul")
        self.url = postgres.url("soul")
        for path in _REPOSITORIES:
            (self.root / path).mkdir(parents=True)
            git(self.root / path, "init", "-q", "-b", "main")
        self._settings = {
            "LYCH_FEDERATION": "kills", "LYCH_REDIS_URL": broker.url, "LYCH_DATABASE_URL": self.url,
            "LYCH_ROOT": str(self.root), "LYCH_VAULT": str(self.vault), "LYCH_DRIVER": driver,
            "LYCH_PGDATA": str(postgres.pgdata), "LYCH_PG_BIN": str(postgres.pg_bin),
        }
        with psycopg.connect(self.url) as connection:
            connection.execute("create table account (id serial primary key, amount int)")
            connection.execute("select lo_from_bytea(4711, 'x')")
        self.number = 0
        self.change()
        init(self.open())
        self.change()
        self.checkpoint = str(coordinator.create(self.open(), coordinator.Request())["id"])
        self.sealed = self.pair()

    def open(self) -> Federation:
        """Open the federation anew, as a process of its own would."""
        for name in [name for name in os.environ if name.startswith("LYCH_")]:
            del os.environ[name]
        os.environ.update(self._settings)
        return Federation(Settings.load())

    def change(self) -> None:
        """Move code and data on, and let the gate imprint it: another whole pair."""
        self.number += 1
        for path in _REPOSITORIES:
            (self.root / path / "version").write_text(f"{self.number}\n")
            (self.root / path / f"only-{self.number}").write_text("x" * 1000)
            for old in (self.root / path).glob("only-*"):
                if old.name != f"only-{self.number}":
                    old.unlink()
            git(self.root / path, "add", "-A")
            git(self.root / path, "commit", "-q", "-m", str(self.number))
        with psycopg.connect(self.url) as connection:
            connection.execute("insert into account (amount) select 1 from generate_series(1, 10)")
            connection.execute("select lo_put(4711, 0, %s)", (str(self.number).encode(),))
        if (self.vault / "federation.json").exists():
            gate.check(self.open())

    def spoil(self) -> None:
        """Change a file of the body, as somebody might in the middle of a restore."""
        (self.root / _REPOSITORIES[0] / "version").write_text("spoilt\n")

    def pair(self) -> Pair:
        """Digest every row, sequence and large object, and every file and HEAD."""
        with psycopg.connect(self.url) as connection:
            said = connection.execute(
                "select (select md5(string_agg(a::text, ',' order by id)) from account a), "
                "(select last_value from account_id_seq), lo_get(4711)").fetchone()
        seen = hashlib.sha256()
        for path in _REPOSITORIES:
            seen.update(git(self.root / path, "rev-parse", "HEAD"))
            seen.update(git(self.root / path, "status", "--porcelain"))
            for file in sorted((self.root / path).iterdir()):
                if file.is_file():
                    seen.update(file.name.encode() + file.read_bytes())
        return Pair(soul=repr(said), body=seen.hexdigest())

    def forget_safety(self) -> None:
        """Drop the safety copies, so that two hundred restores do not fill the disk."""
        federation = self.open()
        for manifest in list(federation.vault.manifests()):
            if manifest.safety:
                Soul.reopen(federation.ground(), manifest.soul.driver, {}).discard(manifest.soul)
                shutil.rmtree(federation.vault.path(manifest.id))


def git(directory: Path, *arguments: str) -> bytes:
    """Run git there and return its stdout."""
    done = subprocess.run(["git", "-C", directory, *arguments], check=False, capture_output=True,
                          env={**os.environ, **_WHO})
    if done.returncode:
        raise ServerError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
