"""Who a process is, so that its pid alone never counts."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: The pid namespace that a machine starts with (PROC_PID_INIT_INO in linux/proc_ns.h).
_FIRST_SPACE = "pid:[4026531836]"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from any later one with the same pid.

    ``machine`` is the kernel's boot id and ``space`` the pid namespace: a pid means something only inside both.
    ``installation`` is what stays through a reboot and no two hosts share; empty where nothing of that kind is known.
    """

    host: str
    machine: str
    space: str
    pid: int
    started: int
    installation: str = ""

    @classmethod
    def mine(cls) -> Identity:
        """Return this process's identity."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return the identity of a process of this host."""
        return cls(socket.gethostname(), _machine(), _space(), pid, _started(pid) or 0, _installation())

    def alive(self) -> bool | None:
        """Return whether the process lives, or None where that cannot be seen from here."""
        here = Identity.mine()
        if self.is_of_an_earlier_start(here):
            return False
        return _started(self.pid) == self.started if self.shares_pids(here) else None

    def shares_pids(self, other: Identity) -> bool:
        """Return whether both processes' pids mean the same there."""
        return (self.machine, self.space) == (other.machine, other.space)

    def is_of_an_earlier_start(self, here: Identity) -> bool:
        """Return whether it is proven that the machine of ``here`` was started anew since, and so ended this process.

        A name proves nothing: containers and cloned machines share one.
        """
        return bool(self.installation) and self.installation == here.installation and self.machine != here.machine

    def end_group(self) -> None:
        """Kill the process group that this process leads, if it is provably still that process."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _installation() -> str:
    """Digest the machine id and the network cards' own addresses: clones may share the first, never the second.

    Not in a container, whose machine id is its image's and whose addresses follow from its network's.
    """
    if _space() != _FIRST_SPACE:
        return ""
    try:
        known = Path("/etc/machine-id").read_text().strip()
        cards = sorted((card / "address").read_text().strip() for card in Path("/sys/class/net").iterdir()
                       if (card / "device").exists())
    except OSError:
        return ""
    return hashlib.sha256(" ".join([known, *cards]).encode()).hexdigest() if known and cards else ""


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
