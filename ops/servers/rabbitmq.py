"""A RabbitMQ node of its own on free loopback ports, with its own epmd, home and cookie."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from ops.servers.binaries import rabbitmq_server
from ops.servers.child import ServerError, end, free_port, spawn, tail, wait_until

_GREETING = b"AMQP\x00\x00\x09\x01"
# Its file checks compare with the whole disk; statistics are only for the management plugin.
_CONFIGURATION = "disk_free_limit.absolute = 1MB\ncollect_statistics = none\n"


class RabbitNode:
    """One node with the user guest on loopback. A context manager that stops it and removes its directory."""

    def __init__(self, directory: Path, program: Path, configuration: Mapping[str, str], tick_ms: int) -> None:
        self.directory = directory / "rabbitmq"
        self.port, self._dist_port, self._epmd_port = (free_port() for _ in range(3))
        self.log = self.directory / "rabbitmq.log"
        self._program = program
        self._configuration, self._tick_ms = configuration, tick_ms
        self._epmd: subprocess.Popen[bytes] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def start_new(
        cls, directory: Path, *, configuration: Mapping[str, str] | None = None, program: Path | None = None,
        tick_ms: int = 60_000,
    ) -> Self:
        """Start a node with its files in ``directory``/rabbitmq and return when it takes clients (about 5 s).

        Args:
            directory: made if missing.
            configuration: lines of rabbitmq.conf, such as ``{"consumer_timeout": "60000"}``.
            program: `rabbitmq-server`, not Debian's wrapper, which insists on a user; found if not given.
            tick_ms: how often a channel looks whether its consumer_timeout has passed; rabbitmq.conf cannot say.

        Raises:
            ServerError: the cause, with the log's end. Nothing is left.
        """
        node = cls(directory, program or rabbitmq_server(), configuration or {}, tick_ms)
        node.directory.mkdir(parents=True)
        try:
            node._prepare()
            node.start()
        except BaseException:
            node.close()
            raise
        return node

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def pid(self) -> int | None:
        """The running node, or None."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def epmd_pid(self) -> int | None:
        """The node's own port mapper, or None."""
        return self._epmd.pid if self._epmd is not None and self._epmd.poll() is None else None

    def start(self) -> None:
        """Start the node on its ports and return when it takes clients; queues and durable messages are back then."""
        if self._epmd is None:
            # In the foreground and started first: else the node starts one as a daemon, which outlives it.
            self._epmd = spawn(["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"], log=self.log)
            self._await(self._epmd, self._epmd_port, b"", "epmd", timeout_s=10)
        self._child = spawn([self._program], log=self.log, environment=self._environment())
        self._await(self._child, self.port, _GREETING, "rabbitmq", timeout_s=60)

    def stop(self) -> None:
        """Stop the node as its service manager would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node with SIGKILL."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Kill the node and its epmd and remove its directory; never fails on what is gone already."""
        self.kill()
        if self._epmd is not None:
            end(self._epmd, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", *(f"{k} = {v}" for k, v in self._configuration.items())]
        (self.directory / "rabbitmq.conf").write_text(_CONFIGURATION + "\n".join(lines) + "\n")
        (self.directory / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),
            "RABBITMQ_NODENAME": "rabbit@localhost",  # alone in its own epmd
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "no-environment"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
                                                   f"-rabbit channel_tick_interval {self._tick_ms}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the node, instead of a shell before it
        }

    def _await(
        self, child: subprocess.Popen[bytes], port: int, say: bytes, what: str, *, timeout_s: float
    ) -> None:
        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(say)
                return not say or connection.recv(1) == b"\x01"  # a method frame: Connection.Start
            return False

        wait_until(
            lambda: answers() or child.poll() is not None,
            timeout_s=timeout_s, else_say=lambda: f"{what} does not answer after {timeout_s:g} s:\n{tail(self.log)}",
        )
        if child.poll() is not None:
            raise ServerError(f"{what} did not start:\n{tail(self.log)}")

    def _end(self, first: signal.Signals) -> None:
        if self._child is None:
            return
        end(self._child, first, timeout_s=30)
        with suppress(ProcessLookupError):  # its port programs end by themselves, when they read the end of a pipe
            for _ in range(300):
                os.killpg(self._child.pid, signal.SIGKILL)
                time.sleep(0.01)
