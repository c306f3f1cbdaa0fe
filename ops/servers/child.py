"""Child processes that cannot outlive us: started with a kernel promise, ended by pid."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lych_checkpoint.process import Owner

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_CLEAN_PREFIXES = ("PG", "LYCH_")  # PGDATA or PGHOST of the caller's shell would steer a server started for a test


class ServerError(RuntimeError):
    """A server did not start or did not stop; the text says which and quotes its log."""


def me() -> Owner:
    """Return this process's own user."""
    return Owner(os.geteuid(), os.getegid())


def inherited() -> dict[str, str]:
    """Return the environment that a child gets of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_CLEAN_PREFIXES)}


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send ``number`` to this process when its parent's thread ends; setuid clears that."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    owner: Owner | None = None,
    on_parent_death: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in `/`, in its own process group, output appended to ``log``.

    The kernel sends ``on_parent_death`` when the *thread* that called this ends: call it from a thread that lives as
    long as the child should.
    """
    parent = os.getpid()

    def promise() -> None:  # runs after setuid, which would clear it
        end_with_parent(on_parent_death)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
            env={**inherited(), **(environment or {})}, preexec_fn=promise, process_group=0,
            **(owner.popen_arguments() if owner else {}),
        )


def wait_until(ready: Callable[[], bool], *, timeout_s: float, else_say: Callable[[], str]) -> None:
    """Poll ``ready`` every 10 ms.

    Raises:
        ServerError: not ready within ``timeout_s``, with what ``else_say`` says.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ServerError(else_say())
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def signal_pid(pid: int, number: signal.Signals) -> None:
    """Send ``number`` to ``pid``; a process that is gone already is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def end(child: subprocess.Popen[bytes], first: signal.Signals = signal.SIGTERM, *, timeout_s: float = 10) -> int:
    """End ``child`` with ``first``, after ``timeout_s`` with SIGKILL, and return its exit code."""
    if child.poll() is None:
        child.send_signal(first)
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tail(log: Path, lines: int = 8) -> str:
    """Return the last ``lines`` of ``log``, or nothing if there is none."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
