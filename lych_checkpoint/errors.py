"""The error tree. Every error says what was found, where, what mends it, and so what state is left behind.

::

    CheckpointError
    ├── SettingError        2   a setting is unknown, missing or bad
    ├── UnknownName         2   no such checkpoint, or more than one
    ├── Refused             1   the attempt stopped; nothing changed, workers run
    ├── Damage              3   a sealed file changed, went missing or appeared
    ├── FreezeError         4   no ack, or no drain, in time; everything thawed
    ├── LockHeld            5   another create, restore, prune or rehearse runs
    ├── RestoreOpen         6   a restore began and has not ended: `recover`
    ├── Away               75   a server or the vault cannot be reached; nothing can be said
    ├── GateUnsure         75   the gate cannot know yet: start again later
    └── GateRefused        78   the gate says no: starting again changes nothing

All survive pickling (prefork children send them through a pipe) and become the ``error`` object of ``--json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class CheckpointError(Exception):
    """Root of the tree.

    Args:
        what: one sentence, what was found.
        where: the repository, worker, file, server or setting.
        mend: the command or change that mends it; empty where waiting is all there is.
        code: stable slug for scripts; the class's own if not given.

    ``facts`` are what else was found, for the ``--json`` document beside the error: a gate's verdicts.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "failed"

    def __init__(self, what: str, where: str = "", mend: str = "", code: str = "") -> None:
        super().__init__(what, where, mend, code)
        self.what = what
        self.where = where
        self.mend = mend
        self.code = code or self.default_code
        self.facts: dict[str, Any] = {}

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} (mend: {self.mend})" if self.mend else text

    def as_json(self) -> dict[str, str]:
        """Return the ``error`` object of every ``--json`` document."""
        return {"code": self.code, "what": self.what, "where": self.where, "mend": self.mend}


class SettingError(CheckpointError):
    """Raised when a setting is unknown, missing or out of bounds. Nothing was started."""

    exit_code = 2
    default_code = "bad-setting"


class UnknownName(CheckpointError):
    """Raised when a checkpoint's name fits none or several. Nothing was read or changed."""

    exit_code = 2
    default_code = "unknown-name"


class Refused(CheckpointError):
    """Raised when an attempt stops for a reason that lies outside. Nothing changed; workers run."""

    exit_code = 1
    default_code = "refused"


class Damage(CheckpointError):
    """Raised when sealed bytes are not what was sealed. Nothing was restored from them."""

    exit_code = 3
    default_code = "damage"


class FreezeError(CheckpointError):
    """Raised when a worker did not ack or drain in time. Everything is thawed."""

    exit_code = 4
    default_code = "freeze-failed"


class LockHeld(CheckpointError):
    """Raised when another operation holds the lock. Nothing was started."""

    exit_code = 5
    default_code = "lock-held"


class RestoreOpen(CheckpointError):
    """Raised when a restore has begun and has not ended. Only `recover` goes on from here."""

    exit_code = 6
    default_code = "restore-open"


class Away(CheckpointError):
    """Raised when Redis, broker, PostgreSQL or the vault cannot be reached. Nothing is known, nothing changed."""

    exit_code = 75
    default_code = "away"


class GateUnsure(CheckpointError):
    """Raised when the gate cannot know yet; a supervisor should start the process again."""

    exit_code = 75
    default_code = "gate-unsure"


class GateRefused(CheckpointError):
    """Raised when body and soul do not belong together; a supervisor should not start the process again."""

    exit_code = 78
    default_code = "gate-refused"


#: Refusals of a file system or a lock that may be others a minute later.
_PASSING = ("vault-full", "vault-unwritable", "root-read-only", "no-room", "locked", "git-failed")


def at_the_gate(error: CheckpointError) -> CheckpointError:
    """Return the same error as the gate says it: `GateUnsure` for what may pass by itself, `GateRefused` for damage.

    So every supervisor needs two codes: 75 starts again, 78 waits for a person. A bad setting remains 2.
    """
    if isinstance(error, Damage) or (isinstance(error, Refused) and error.code not in _PASSING):
        said: type[CheckpointError] = GateRefused
    elif isinstance(error, Refused | RestoreOpen | LockHeld | FreezeError):
        said = GateUnsure
    else:
        return error
    answer = said(error.what, error.where, error.mend, error.code)
    answer.facts = error.facts
    return answer


@contextmanager
def gate_answers() -> Iterator[None]:
    """Let what stops the block be said as the gate says it; see `at_the_gate`."""
    try:
        yield
    except CheckpointError as error:
        answer = at_the_gate(error)
        if answer is error:
            raise
        raise answer from error
