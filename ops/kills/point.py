"""Where a restore is killed: before, in or after one of its steps, the process alone or with its whole group.

Nothing of the restore is changed for it. A profile hook sees the steps begin and end, an audit hook counts what a
step does to the world (files, programs, ioctls, sockets), and the kill falls on one of those events.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal

from lych_checkpoint import body, freeze, journal, seal, witness
from lych_checkpoint.lease import marks
from lych_checkpoint.soul import Soul
from lych_checkpoint.vault import Vault, write_atomic

When = Literal["before", "in", "after"]
Who = Literal["alone", "group"]

#: `journal.advance` is a step per phase, and one more where it says what is discarded.
_STEPS: dict[str, Callable[..., Any]] = {
    "begin journal": journal.begin, "body.stage": body.stage, "soul.stage": Soul.stage, "soul.animate": Soul.animate,
    "wait for acks": freeze.Freeze.wait_for_acks, "drain": freeze.Freeze.drain, "journal closing": journal.advance,
    "soul.shut_out": Soul.shut_out, "confirm": freeze.Freeze.confirm, "body.displace": body.displace,
    "journal switching": journal.advance, "soul.switch": Soul.switch, "body.switch": body.switch,
    "body.verify": body.verify, "soul.check": Soul.check, "journal done": journal.advance, "soul.let_in": Soul.let_in,
    "witness awake": witness.mark_awake, "lineage": Vault.append_lineage, "write lychd.lock": write_atomic,
    "safety: bundles": body.bundle_lock, "safety: displaced": Soul.displaced, "safety: seal": seal.seal,
    "safety: publish": Vault.publish, "body.unstage": body.unstage, "mark restored": marks.mark_restored,
    "close journal": journal.close, "body.switch_back": body.switch_back, "soul.switch_back": Soul.switch_back,
    "journal undone": journal.advance, "soul.discard_stage": Soul.discard_stage,
    "journal discarding": journal.advance, "soul.discard": Soul.discard, "body.unpin": body.unpin,
}
_EVENTS = ("open", "os.", "shutil.", "subprocess.Popen", "fcntl.", "socket.connect", "ctypes.call_function")
#: A program that an event starts is killed, or orphaned, up to this much later.
_LATER_S = 0.03


@dataclass(frozen=True, slots=True)
class Point:
    """One kill. ``act`` is what is killed; ``event`` counts from 0 and only means something ``in`` a step."""

    act: str
    step: str
    when: When
    who: Who
    event: int = 0


class Watch:
    """Follows one act in this process; with a point it kills it there, without it counts the events by step.

    ``spoil`` is called when the body was switched, as somebody else might just then change it.
    """

    def __init__(
        self, point: Point | None, later_s: float = 0.0, spoil: Callable[[], None] | None = None,
    ) -> None:
        self.events: Counter[str] = Counter()
        self.seen: list[str] = []
        self._point, self._later_s, self._spoil = point, later_s, spoil
        self._codes: dict[CodeType, list[str]] = {}
        for name, function in _STEPS.items():
            self._codes.setdefault(function.__code__, []).append(name)
        self._inside: list[str] = []
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Watch from here on; an audit hook cannot be taken away, so only for a process of its own."""
        sys.addaudithook(self._on_event)
        sys.setprofile(self._on_call)

    def _on_call(self, frame: FrameType, act: str, _: object) -> None:
        names = self._codes.get(frame.f_code)
        if names is None or act not in ("call", "return"):
            return
        name = names[0] if len(names) == 1 else _advanced(frame)
        if name not in _STEPS or (name == "write lychd.lock" and frame.f_locals["path"].name != "lychd.lock"):
            return
        if act == "call":
            self.seen.append(name)
            self._inside.append(name)
            self._kill_if(name, "before")
        elif name in self._inside:
            self._inside.remove(name)
            self._kill_if(name, "in")  # fewer events than when they were counted: one that waits polls as it may
            self._kill_if(name, "after")
            if name == "body.switch" and self._spoil is not None:
                self._spoil()

    def _on_event(self, event: str, _: object) -> None:
        if not self._inside or not event.startswith(_EVENTS):
            return
        step = self._inside[-1]
        number = self.events[step]
        self.events[step] += 1
        point = self._point
        if point is not None and (point.step, point.when) == (step, "in") and number == point.event:
            if event == "subprocess.Popen":
                threading.Timer(self._later_s * _LATER_S, _kill, (point.who,)).start()
            else:
                _kill(point.who)

    def _kill_if(self, step: str, when: When) -> None:
        if self._point is not None and (self._point.step, self._point.when) == (step, when):
            _kill(self._point.who)


def _advanced(frame: FrameType) -> str:
    return "journal " + ("discarding" if "discarding" in frame.f_locals["facts"] else str(frame.f_locals["phase"]))


def _kill(who: Who) -> None:
    if who == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
