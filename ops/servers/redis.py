"""A Redis (Valkey) server of its own on a free loopback port."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from ops.servers.binaries import redis_server
from ops.servers.child import ServerError, end, free_port, spawn, tail, wait_until

Persistence = Literal["appendonly", "save", "none"]
_PERSISTENCE: dict[Persistence, list[str]] = {
    "appendonly": ["--appendonly", "yes", "--save", ""],
    "save": ["--appendonly", "no", "--save", "1 1"],
    "none": ["--appendonly", "no", "--save", ""],
}


class RedisNode:
    """One server without password on loopback. A context manager that stops it and removes its directory."""

    def __init__(self, directory: Path, program: Path, persistence: Persistence) -> None:
        self.directory = directory / "redis"
        self.port = free_port()
        self.log = self.directory / "redis.log"
        self._program = program
        self._persistence = persistence
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def start_new(
        cls, directory: Path, *, persistence: Persistence = "appendonly", program: Path | None = None
    ) -> Self:
        """Start a server with its files in ``directory``/redis and return when it answers.

        Args:
            directory: made if missing.
            persistence: what survives a restart: the log of writes, a dump per second, or nothing.
            program: the server; found if not given.

        Raises:
            ServerError: the cause, with the log's end. Nothing is left.
        """
        node = cls(directory, program or redis_server(), persistence)
        node.directory.mkdir(parents=True)
        try:
            node.start()
        except BaseException:
            node.close()
            raise
        return node

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The running server, or None."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start the server on its port and return when it answers with its data loaded."""
        child = self._child = spawn(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory,
             "--daemonize", "no", *_PERSISTENCE[self._persistence]],
            log=self.log,
        )
        wait_until(
            lambda: self._answers() or child.poll() is not None,
            timeout_s=20, else_say=lambda: f"redis does not answer after 20 s:\n{tail(self.log)}",
        )
        if child.poll() is not None:
            raise ServerError(f"redis did not start:\n{tail(self.log)}")

    def stop(self) -> None:
        """Stop the server as its service manager would; it saves what its persistence says."""
        if self._child is not None:
            end(self._child, signal.SIGTERM)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        if self._child is not None:
            end(self._child, signal.SIGKILL)

    def close(self) -> None:
        """Kill the server and remove its directory; never fails on what is gone already."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False
