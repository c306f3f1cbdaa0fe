"""Run one external program: argv only, no shell, its stderr kept for the error."""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from lych_checkpoint.errors import Refused
from lych_checkpoint.process.identity import Identity

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Owner:
    """The user that a program runs as: uid, primary gid."""

    uid: int
    gid: int

    @classmethod
    def of(cls, path: Path) -> Owner:
        """Return the owner of ``path``."""
        stat = path.stat()
        return cls(stat.st_uid, stat.st_gid)

    @classmethod
    def named(cls, name: str) -> Owner:
        """Return the user ``name``. KeyError if there is none."""
        found = pwd.getpwnam(name)
        return cls(found.pw_uid, found.pw_gid)

    @property
    def is_me(self) -> bool:
        """Whether this process already has that uid."""
        return os.geteuid() == self.uid

    def popen_arguments(self) -> dict[str, Any]:
        """Return Popen's keyword arguments that drop to this owner; empty when it is this process's own."""
        return {} if self.is_me else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def __str__(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    environment: Mapping[str, str] | None = None,
    owner: Owner | None = None,
    cwd: Path | None = None,
    mend: str = "",
    dies_with_us: bool = False,
) -> str:
    """Run ``argv`` to its end and return its stdout.

    Args:
        argv: program and arguments.
        timeout_s: after this the program is killed and the run refused.
        environment: added to this process's own.
        owner: run as this user.
        cwd: working directory.
        mend: what the error should advise.
        dies_with_us: the kernel kills it at once when this thread ends; not what it has started by then.

    Raises:
        Refused: the program is missing, failed (its last line is quoted, of stderr if it said any) or took too long.
    """
    program, us = Path(argv[0]).name, os.getpid()

    def promise() -> None:  # runs after setuid, which would clear it
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != us:
            os._exit(1)

    try:
        done = subprocess.run(
            [str(part) for part in argv],
            check=False, capture_output=True, text=True, errors="replace", timeout=timeout_s,
            env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, cwd=cwd,
            preexec_fn=promise if dies_with_us else None,
            **(owner.popen_arguments() if owner else {}),
        )
    except FileNotFoundError as error:
        raise Refused(f"the program {argv[0]} was not found", program, mend, "program-missing") from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{program} did not end within {timeout_s:g} s", program, mend, "program-slow") from error
    if done.returncode:
        raise _failed(program, done.returncode, done.stderr if done.stderr.strip() else done.stdout, mend)
    return str(done.stdout)


def ended_within(child: Any, timeout_s: float) -> tuple[bytes, bytes] | None:
    """Return what a child that another library started wrote to its two pipes; None if it goes on after this time."""
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None
    return out, err


class Running:
    """A program that runs beside us. Made by `spawned`."""

    def __init__(self, child: subprocess.Popen[bytes], program: str, complaints: IO[bytes]) -> None:
        self._child, self._program, self._complaints = child, program, complaints

    @property
    def ended(self) -> bool:
        """Whether the program has ended, well or badly."""
        return self._child.poll() is not None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the program's good end.

        Raises:
            Refused: it failed (its last stderr line is quoted), or did not end within ``timeout_s``.
        """
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{self._program} did not end within {timeout_s:g} s", self._program, "",
                          "program-slow") from error
        if code:
            self._complaints.seek(0)
            raise _failed(self._program, code, self._complaints.read().decode(errors="replace"), "")


@contextmanager
def spawned(
    argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, umask: int = 0o077
) -> Iterator[Running]:
    """Run ``argv`` beside us for the length of the block; killed at its end if it still runs.

    Raises:
        Refused: the program is missing.
    """
    program = Path(argv[0]).name
    with tempfile.TemporaryFile() as complaints:  # a file, since nobody drains a pipe while the window runs
        try:
            child = subprocess.Popen(
                [str(part) for part in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints,
                env={**os.environ, **(environment or {})}, umask=umask,
            )
        except FileNotFoundError as error:
            raise Refused(f"the program {argv[0]} was not found", program, "", "program-missing") from error
        try:
            yield Running(child, program, complaints)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


def run_kept(
    argv: Sequence[str], output: Path, *, keep_bytes: int, timeout_s: float, cwd: Path,
    on_start: Callable[[Identity], object], environment: Mapping[str, str] | None = None,
) -> None:
    """Run ``argv`` to its end in a process group of its own, and keep what it prints in the file ``output``.

    Args:
        argv: program and arguments.
        output: replaced; of more than ``keep_bytes`` the beginning and the end are kept.
        keep_bytes: see there.
        timeout_s: after this the whole group is killed and the run refused.
        cwd: working directory.
        on_start: told whom it runs as, so that `Identity.end_group` can end it should this process die.
        environment: added to this process's own.

    Raises:
        Refused: the program is missing, failed (its last line is quoted) or took too long.
    """
    program = Path(argv[0]).name
    with output.open("wb") as file:
        try:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     cwd=cwd, start_new_session=True, env={**os.environ, **(environment or {})})
        except OSError as error:
            raise Refused(f"{argv[0]} cannot be run: {error.strerror}", program, "", "program-missing") from error
        try:
            on_start(Identity.of(child.pid))
            last = _keep(child, file, keep_bytes, time.monotonic() + timeout_s)
            if child.poll() is None:
                raise Refused(f"{program} did not end within {timeout_s:g} s", program, "", "program-slow")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            assert child.stdout is not None  # noqa: S101 - a pipe was asked for
            child.stdout.close()
    if child.returncode:
        raise _failed(program, child.returncode, last.decode(errors="replace"), "")


def _keep(child: subprocess.Popen[bytes], file: IO[bytes], keep_bytes: int, deadline_s: float) -> bytes:
    """Copy the child's output until it has ended or the time is over, and return the last of it.

    Its end is not the pipe's: what it left running may hold that open for ever.
    """
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    pipe = child.stdout.fileno()
    half, written, left_out = keep_bytes // 2, 0, 0
    ends: deque[bytes] = deque()
    held = 0
    while time.monotonic() < deadline_s:
        ended = child.poll() is not None
        if not select.select([pipe], [], [], 0 if ended else 0.05)[0]:
            if ended:
                break
            continue
        data = os.read(pipe, 65536)
        if not data:  # closed; the program may run on
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline_s - time.monotonic()))
            break
        head = data[: max(0, half - written)]
        file.write(head)
        file.flush()
        written += len(head)
        if len(head) < len(data):
            ends.append(data[len(head):])
            held += len(ends[-1])
        while held - len(ends[0] if ends else b"") >= half:
            left_out += len(ends[0])
            held -= len(ends.popleft())
    if left_out:
        file.write(f"\n[{left_out} bytes left out]\n".encode())
    file.writelines(ends)
    file.flush()
    with open(file.name, "rb") as again:
        again.seek(max(0, again.seek(0, os.SEEK_END) - 4096))
        return again.read()


def start_again() -> NoReturn:
    """Replace this process by a new one of the same command line; the pid stays, so nobody outside need know."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is meant


def _failed(program: str, code: int, complaints: str, mend: str) -> Refused:
    lines = [line for line in complaints.splitlines() if line.strip()] or [f"exit {code}"]
    refused = Refused(f"{program} failed with {code}: {lines[-1].strip()}", program, mend, "program-failed")
    refused.facts = {"exit": code, "said": [line.strip() for line in lines[:3]]}
    return refused
