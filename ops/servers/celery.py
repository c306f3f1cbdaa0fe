"""Real Celery processes: worker, beat, or one command of `celery`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from ops.servers.child import ServerError, spawn, tail, wait_until


class Child(Protocol):
    """What is asked of a process that was started; a Popen is one."""

    @property
    def pid(self) -> int:
        """Its id, and that of its process group."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None, /) -> int:
        """Return its exit code when it has ended; raises TimeoutExpired."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, if it runs."""


class Start(Protocol):
    """Starts `python -m ARGV…` in `/`, in its own process group, output appended to ``log``."""

    def __call__(self, argv: list[str], *, log: Path, environment: Mapping[str, str]) -> Child:
        """Start it."""


def interpreter(
    argv: list[str], *, log: Path, environment: Mapping[str, str], within: tuple[str, ...] = ()
) -> Child:
    """Start it in an interpreter of its own; ``within`` is the command that runs that: on another host, say."""
    return spawn([*within, sys.executable, "-m", *argv], log=log, environment=environment)


class CeleryProcess:
    """One long-lived `python -m celery …`, its log, its exit code. A context manager that ends it."""

    def __init__(self, child: Child, log: Path, ready_mark: str) -> None:
        self._child = child
        self.log = log
        self._mark = ready_mark
        self._asked = False

    @classmethod
    def worker(
        cls, app: str, name: str, *, directory: Path, environment: Mapping[str, str],
        pool: str = "prefork", concurrency: int = 2, options: tuple[str, ...] = (), start: Start = interpreter,
    ) -> Self:
        """Start a worker `name`@local, its log in ``directory``/NAME.log; it is not ready yet."""
        node = f"{name}@local"
        argv = ["worker", "-n", node, "--pool", pool, "-c", str(concurrency), "-l", "INFO", "--without-gossip",
                "--without-mingle", *options]
        return cls._start(app, argv, directory / f"{name}.log", environment, f"{node} ready.", start)

    @classmethod
    def beat(cls, app: str, *, directory: Path, environment: Mapping[str, str]) -> Self:
        """Start a beat, its log and its schedule in ``directory``."""
        argv = ["beat", "-l", "INFO", "-s", str(directory / "beat-schedule"), "--pidfile="]
        return cls._start(app, argv, directory / "beat.log", environment, "beat: Starting...")

    @property
    def pid(self) -> int:
        """The process's id; a prefork worker's children are its children."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._child.poll()

    @property
    def text(self) -> str:
        """The log so far, with all that went to stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_ready(self, timeout_s: float = 30) -> Self:
        """Return when the log says ready.

        Raises:
            ServerError: it ended or took too long; with the log's end.
        """
        wait_until(
            lambda: self._mark in self.text or self.exit_code is not None,
            timeout_s=timeout_s, else_say=lambda: f"not ready after {timeout_s:g} s:\n{tail(self.log, 30)}",
        )
        if self.exit_code is not None:
            raise ServerError(f"ended with {self.exit_code} before it was ready:\n{tail(self.log, 30)}")
        return self

    def wait_exit(self, timeout_s: float = 30) -> int:
        """Return its exit code once it has ended by itself.

        Raises:
            ServerError: it did not within ``timeout_s``; with the log's end.
        """
        wait_until(
            lambda: self.exit_code is not None,
            timeout_s=timeout_s, else_say=lambda: f"still runs after {timeout_s:g} s:\n{tail(self.log, 30)}",
        )
        return self._child.wait()

    def send(self, number: signal.Signals) -> None:
        """Send ``number`` to the main process alone."""
        self._child.send_signal(number)

    def ask_to_stop(self) -> None:
        """Send SIGTERM without waiting, so that several can end at the same time."""
        if self._child.poll() is None and not self._asked:
            self._asked = True  # a second one would not let the running tasks end
            self._child.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 15) -> int:
        """End it with SIGTERM, then SIGKILL; return its exit code."""
        self.ask_to_stop()
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.send_signal(signal.SIGKILL)
            return self._child.wait()

    def close(self) -> None:
        """End it and every child it left behind."""
        self.stop()
        with suppress(ProcessLookupError):  # the group is its own: `spawn` made it
            for _ in range(300):  # until init has reaped the last; some containers' first process never does
                os.killpg(self._child.pid, signal.SIGKILL)
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _start(
        cls, app: str, argv: list[str], log: Path, environment: Mapping[str, str], ready_mark: str,
        start: Start = interpreter,
    ) -> Self:
        log.unlink(missing_ok=True)
        return cls(start(["celery", "-A", app, *argv], log=log, environment=environment), log, ready_mark)


def command(
    *argv: str, environment: Mapping[str, str], cwd: Path | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGV…` to its end, with only the ``LYCH_*`` that ``environment`` gives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LYCH_")}
    return subprocess.run(
        [sys.executable, "-m", *argv], check=False, capture_output=True, text=True, timeout=timeout_s,
        env={**kept, **environment}, cwd=cwd, stdin=subprocess.DEVNULL,
    )
