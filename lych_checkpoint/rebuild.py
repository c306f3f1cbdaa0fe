"""What a rebirth needs once per host: a lock, how far it is, the user's rebuild, and the record of why it stopped.

All of it lies in ``<LYCH_ROOT>/.lych-stage/rebirth/``, beside the checkout that it speaks of: ``lock``,
``state.json``, in ``output.log`` what the last rebuild printed, and in ``restored`` the last restore followed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lych_checkpoint.body import PLACE
from lych_checkpoint.errors import Damage, GateRefused, GateUnsure
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.process import Identity, run_kept
from lych_checkpoint.records import RELEASE, VERSION, canonical, load_record, read_record
from lych_checkpoint.vault import write_atomic, writing

#: So many tries for the same goal, then nobody tries again before a person has looked.
TRIES = 3
#: So much of what a rebuild prints is kept: half of it from the beginning, half from the end.
OUTPUT_BYTES = 1 << 20
_POLL_S = 0.05

#: Lockfiles' digests, or commits, by repository path.
Stamp = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far a rebirth is on this host.

    ``built`` holds ``commits`` and ``lockfiles`` as they were at the last good rebuild; ``due`` says that a checkout
    came after it; ``tries`` counts those begun for ``goal`` since a worker last passed; ``why`` is how the last one
    failed; ``running`` identifies a rebuild under way; ``ticket`` and ``lock`` are of a checkout that has not ended.
    """

    built: Stamp = field(default_factory=dict)
    due: bool = False
    goal: str = ""
    tries: int = 0
    why: str = ""
    at: float = 0.0
    running: dict[str, Any] = field(default_factory=dict)
    ticket: str = ""
    lock: str = ""


def stamp(root: Path) -> dict[str, str]:
    """Return the commits, by path, that this host's last good rebuild was made for; empty if that is not known."""
    try:
        return dict(Host(root).state.built.get("commits", {}))
    except Damage:
        return {}  # the gate says so; it is no reason to refuse a checkpoint


class Host:
    """The rebirth's place on this host; everything that changes it is done while `held`."""

    def __init__(self, root: Path) -> None:
        self.place = root.absolute() / PLACE / "rebirth"
        self.output = self.place / "output.log"
        self._file = self.place / "state.json"
        self._restored = self.place / "restored"

    @property
    def state(self) -> State:
        """What is recorded.

        Raises:
            Damage: the record cannot be read, or a newer release wrote it.
        """
        try:
            record = load_record(self._file.read_bytes(), str(self._file))
        except FileNotFoundError:
            return State()
        plain = {name: value for name, value in record.items() if name not in ("version", "release")}
        return State(**read_record(State, plain, str(self._file)))

    @property
    def restored(self) -> int:
        """The generation of the last restore that this checkout has followed; 0 if that is not known."""
        try:
            return int(self._restored.read_bytes())
        except (OSError, ValueError):
            return 0

    def note_restored(self, generation: int) -> None:
        """Note which restore this checkout has followed.

        Raises:
            Refused: the root cannot be written.
        """
        self._make()
        write_atomic(self._restored, b"%d" % generation, mode=0o644)

    def _make(self) -> None:
        with writing(self.place):
            make_directory(self.place)

    @contextmanager
    def held(self, patience_s: float) -> Iterator[None]:
        """Hold the host's lock, so that of several workers one works and the others find it done.

        Raises:
            GateUnsure: another process holds it for longer than ``patience_s`` (code ``rebirth-busy``).
            Refused: the root cannot be written.
        """
        self._make()
        with writing(self.place):
            descriptor = os.open(self.place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = time.monotonic() + patience_s
            while not _taken(descriptor):
                if time.monotonic() > deadline_s:
                    raise GateUnsure("another process has been rebuilding here for too long", str(self.place),
                                     "look at what it does", "rebirth-busy")
                time.sleep(_POLL_S)
            self._end_orphan()
            yield
        finally:
            os.close(descriptor)

    def write(self, **facts: Any) -> State:
        """Change the record, durably."""
        state = replace(self.state, at=time.time(), **facts)
        write_atomic(self._file, canonical({"version": VERSION, "release": RELEASE, **asdict(state)}))
        return state

    def begin(self, goal: str) -> None:
        """Count one more try, before anything is done.

        Raises:
            GateRefused: there were enough of them (code ``rebirth-stopped``).
        """
        state = self.state
        tries = state.tries if state.goal == goal else 0
        if tries >= TRIES:
            raise self.stopped()
        self.write(goal=goal, tries=tries + 1, why="it did not end" if tries else "it has not ended")

    def stopped(self) -> GateRefused:
        """Return the refusal that says why nobody tries any more."""
        state = self.state
        return GateRefused(f"rebirth stopped after {state.tries} tries; the last one: {state.why}", str(self._file),
                           f"read {self.output}, mend it, then `lych-checkpoint gate --retry`", "rebirth-stopped")

    def settle(self) -> None:
        """Forget the tries: a worker has passed."""
        if self.state.tries:
            self.write(tries=0, goal="", why="")

    def rebuild(self, argv: tuple[str, ...], *, timeout_s: float, cwd: Path, built: Stamp) -> None:
        """Run the user's program, and note what it was run for.

        Raises:
            Refused: it failed, was too slow, or is missing; its output is in `output`.
        """
        try:
            run_kept(argv, self.output, keep_bytes=OUTPUT_BYTES, timeout_s=timeout_s, cwd=cwd,
                     on_start=lambda identity: self.write(running=asdict(identity)))
        finally:
            self.write(running={})
        self.write(built=built, due=False)

    def _end_orphan(self) -> None:
        """End a rebuild whose worker was killed: two at once would write into the same environment."""
        running = self.state.running
        if running:
            Identity(**running).end_group()
            self.write(running={})


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
