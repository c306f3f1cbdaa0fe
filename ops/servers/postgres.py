"""A PostgreSQL server of its own: a fresh cluster on a free loopback port, as an ordinary user even under root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from lych_checkpoint.process import Owner
from ops.servers.binaries import postgres_bin, reachable_bin
from ops.servers.child import ServerError, end, free_port, is_alive, me, signal_pid, spawn, tail, wait_until

Mode = Literal["smart", "fast", "immediate"]
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_STATUS_LINE = 7  # of postmaster.pid, from 0
USER = "lych"


class PostgresNode:
    """One cluster: superuser `lych`, UTF8, data checksums, scram with a made password on loopback and on its socket.

    All settings stand in postgresql.conf, so that `pg_ctl start` brings up the same server. Made by `start_new`; a
    context manager that stops the server and removes every file it made.
    """

    def __init__(self, pgdata: Path, pg_bin: Path, owner: Owner, scratch: Path, log: Path) -> None:
        self.pgdata = pgdata
        self.pg_bin = pg_bin
        self.owner = owner
        self.port = 0
        self.password = secrets.token_hex(16)
        self.log = log
        self.socket_directory = scratch / "s"
        self._scratch = scratch
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def start_new(
        cls, directory: Path, *, pg_bin: Path | None = None, options: Mapping[str, str] | None = None
    ) -> Self:
        """Make a cluster in ``directory``/pgdata, start it, and return when it takes connections.

        Args:
            directory: made if missing; as root it must be reachable for `nobody`. An empty `pgdata` in it, such as a
                Btrfs subvolume made before, is used as it is.
            pg_bin: directory of the server's programs; found if not given.
            options: added to postgresql.conf.

        Raises:
            ServerError: the cause, with the log's end. Nothing is left.
        """
        owner = _owner()
        # The socket's path may have 107 bytes at most; pytest's own directories are often longer.
        scratch = Path(tempfile.mkdtemp(prefix="lych-pg-", dir="/tmp"))
        scratch.chmod(0o711)
        pgdata = directory / "pgdata"
        node = cls(pgdata, Path(), owner, scratch, directory / "postgres.log")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            pgdata.mkdir(mode=0o700, exist_ok=True)
            os.chown(pgdata, owner.uid, owner.gid)
            node.socket_directory.mkdir(mode=0o700)
            os.chown(node.socket_directory, owner.uid, owner.gid)
            node.pg_bin = reachable_bin(pg_bin or postgres_bin(), owner, scratch)
            node._make_cluster(dict(options or {}))
            node.start()
        except BaseException:
            node.close()
            raise
        return node

    @property
    def pid(self) -> int | None:
        """The running postmaster, whoever started it; None when there is none."""
        try:
            pid = int((self.pgdata / "postmaster.pid").read_text().split("\n", 1)[0])
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ValueError):
            return None
        return pid if program == "postgres" and is_alive(pid) else None

    def url(self, dbname: str = "postgres") -> str:
        """Return the libpq URL of ``dbname``, with user and password."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{dbname}"

    def run(self, program: str, *arguments: str | Path, timeout_s: float = 120) -> str:
        """Run a client program of this server's own version (psql, pgbench, …) against it and return its stdout."""
        done = subprocess.run(
            [self.pg_bin / program, *arguments], check=False, capture_output=True, text=True, cwd="/",
            timeout=timeout_s, env={**os.environ, **self.client_environment()},
        )
        if done.returncode:
            raise ServerError(f"{program} failed with {done.returncode}: {done.stderr.strip()[-800:]}")
        return done.stdout

    def client_environment(self) -> dict[str, str]:
        """Return the libpq variables that lead a client program to this server."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": self.password}

    def start(self) -> None:
        """Start the server and return when it takes connections.

        Raises:
            ServerError: it does not, with its log's end.
        """
        for attempt in (1, 2, 3):
            self._child = spawn(
                [self.pg_bin / "postgres", "-D", self.pgdata],
                log=self.log, owner=self.owner, on_parent_death=signal.SIGQUIT,
            )
            child = self._child
            wait_until(
                lambda child=child: self._is_ready(child.pid) or child.poll() is not None,  # type: ignore[misc]
                timeout_s=30, else_say=lambda: f"postgres is not ready after 30 s:\n{tail(self.log)}",
            )
            if child.poll() is None:
                return
            if attempt == 3 or "could not bind" not in tail(self.log):
                raise ServerError(f"postgres did not start:\n{tail(self.log)}")
            self._set({"port": str(self._new_port())})  # somebody took it between our look and the bind

    def stop(self, mode: Mode = "fast", *, timeout_s: float = 30) -> None:
        """Stop the server, also one that somebody else started on this PGDATA; none running is no error."""
        pid = self.pid
        if pid is not None:
            signal_pid(pid, _SIGNALS[mode])
            try:
                wait_until(lambda: self._reaped(pid), timeout_s=timeout_s, else_say=lambda: "")
            except ServerError:
                self.kill()
            if self._child is not None:
                self._child.poll()  # ours may have been stopped, and another started, by somebody else
        elif self._child is not None:
            end(self._child, signal.SIGQUIT)

    def kill(self) -> None:
        """End the postmaster with SIGKILL, and return when it is gone."""
        pid = self.pid
        if pid is not None:
            signal_pid(pid, signal.SIGKILL)
            wait_until(lambda: self._reaped(pid), timeout_s=10, else_say=lambda: f"postmaster {pid} does not die")
        if self._child is not None:
            self._child.poll()  # see `stop`

    def close(self) -> None:
        """Stop the server and remove what `start_new` made; never fails on what is gone already."""
        self.stop("immediate")
        for made in (self.pgdata, self._scratch):
            shutil.rmtree(made, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_cluster(self, options: dict[str, str]) -> None:
        secret = self.socket_directory / "password"
        secret.write_text(self.password)
        os.chown(secret, self.owner.uid, self.owner.gid)
        argv: list[str | Path] = [
            self.pg_bin / "initdb", "-D", self.pgdata, "-U", USER, "--encoding=UTF8", "--locale=C",
            "--data-checksums", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--no-instructions",
        ]
        if spawn(argv, log=self.log, owner=self.owner).wait(60) != 0:
            raise ServerError(f"initdb failed as {self.owner} in {self.pgdata}:\n{tail(self.log)}")
        secret.unlink()
        self._set({
            "listen_addresses": "127.0.0.1", "port": str(self._new_port()), "max_connections": "100",
            "unix_socket_directories": str(self.socket_directory), "logging_collector": "off", **options,
        })

    def _new_port(self) -> int:
        self.port = free_port()
        return self.port

    def _set(self, settings: Mapping[str, str]) -> None:
        with (self.pgdata / "postgresql.conf").open("a") as conf:
            for name, value in settings.items():
                quoted = value.replace("'", "''")
                conf.write(f"{name} = '{quoted}'\n")

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        # A killed postmaster leaves its file behind, "ready" and all.
        return lines[0] == str(pid) and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"

    def _reaped(self, pid: int) -> bool:
        if self._child is not None and self._child.pid == pid:
            return self._child.poll() is not None
        return not is_alive(pid)


def _owner() -> Owner:
    """Return who the server runs as: us, or `nobody` under root, whom postgres refuses."""
    mine = me()
    try:
        if mine.uid:
            pwd.getpwuid(mine.uid)
            return mine
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise ServerError(f"initdb needs a passwd entry for its user: {error}") from error
    return Owner(nobody.pw_uid, nobody.pw_gid)
