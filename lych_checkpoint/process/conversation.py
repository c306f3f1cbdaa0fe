"""A program that answers line by line, and ends when nobody listens any more."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lych_checkpoint.errors import Refused

_CHUNK_BYTES = 65536
#: A line that is longer is no answer.
_LONGEST_BYTES = 1 << 20
#: How long the program may take to put things in order when we hang up.
_HANGS_UP_S = 60.0


class Conversation:
    """One running program. Made by `conversing`."""

    def __init__(self, child: subprocess.Popen[bytes], program: str, complaints: IO[bytes]) -> None:
        self._child, self._program, self._complaints = child, program, complaints
        self._read = b""

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """Send a line and return the line that answers it, both without their end.

        Raises:
            Refused: the program ended (its last stderr line is quoted), was too slow, or answered no line.
        """
        assert self._child.stdin is not None  # noqa: S101 - a pipe was asked for
        assert self._child.stdout is not None  # noqa: S101
        deadline_s = time.monotonic() + timeout_s
        try:
            self._child.stdin.write(line + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        while b"\n" not in self._read:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._child.stdout], [], [], left_s)[0]:
                raise Refused(f"{self._program} did not answer within {timeout_s:g} s", self._program, "",
                              "program-slow")
            data = os.read(self._child.stdout.fileno(), _CHUNK_BYTES)
            self._read += data
            if not data:
                raise self._gone()
            if len(self._read) > _LONGEST_BYTES:
                raise Refused(f"{self._program} answered no line", self._program, "", "program-failed")
        answer, _, self._read = self._read.partition(b"\n")
        return answer

    def _gone(self) -> Refused:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        self._complaints.seek(0)
        lines = [line for line in self._complaints.read().decode(errors="replace").splitlines() if line.strip()]
        return Refused(f"{self._program} ended with {self._child.poll()}: {lines[-1].strip() if lines else ''}",
                       self._program, "", "program-failed")


@contextmanager
def conversing(argv: Sequence[str | Path]) -> Iterator[Conversation]:
    """Run ``argv`` for the length of the block; at its end it hears that nobody listens, and may put things in order.

    Raises:
        Refused: it cannot be run.
    """
    program = Path(argv[0]).name
    with tempfile.TemporaryFile() as complaints:
        try:
            child = subprocess.Popen([str(part) for part in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=complaints, start_new_session=True)
        except OSError as error:
            raise Refused(f"{argv[0]} cannot be run: {error.strerror}", program, "", "program-missing") from error
        assert child.stdin is not None  # noqa: S101 - pipes were asked for
        assert child.stdout is not None  # noqa: S101
        try:
            yield Conversation(child, program, complaints)
        finally:
            with suppress(OSError):
                child.stdin.close()
            try:
                child.wait(_HANGS_UP_S)
            except subprocess.TimeoutExpired:
                with suppress(PermissionError):  # another user's; it has no input and ends by itself
                    child.kill()
                    child.wait()
            child.stdout.close()
