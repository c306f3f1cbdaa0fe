"""Who a process is, so that its pid alone never counts."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from any later one with the same pid.

    ``machine`` is the kernel's boot id and ``space`` the pid namespace: a pid means something only inside both.
    """

    host: str
    machine: str
    space: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> Identity:
        """Return this process's identity."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return the identity of a process of this host."""
        return cls(socket.gethostname(), _machine(), _space(), pid, _started(pid) or 0)

    def alive(self) -> bool | None:
        """Return whether the process lives, or None where that cannot be seen from here."""
        if (self.machine, self.space) != (_machine(), _space()):
            return False if self.host == socket.gethostname() and self.machine != _machine() else None
        return _started(self.pid) == self.started

    def end_group(self) -> None:
        """Kill the process group that this process leads, if it is provably still that process."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _machine() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _space() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _started(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Field 22, counted behind the name, which may itself hold spaces and parentheses. A zombie runs nothing.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
