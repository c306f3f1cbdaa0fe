"""What is killed: a restore, one that undoes itself, a recover of either kind, one without a safety copy."""

from __future__ import annotations

from dataclasses import dataclass

from lych_checkpoint import restore
from lych_checkpoint.errors import Refused
from ops.kills.ground import Ground
from ops.kills.point import Point

_SWITCH = ("soul.switch", "body.switch", "body.verify", "soul.check", "journal done", "soul.let_in", "witness awake",
           "lineage", "write lychd.lock", "mark restored")
_SEAL = ("safety: bundles", "safety: displaced", "safety: seal", "safety: publish")
_END = ("body.unstage", "close journal")
_REMOVE = ("soul.let_in", "journal undone", "soul.discard_stage", *_END)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """``steps`` in which it is killed; ``ends`` with the old or the new pair where nobody kills it.

    ``first``: where the restore was killed that it recovers, if it is a recover. ``spoilt``: somebody changes the
    body just after its switch, so that the restore finds it differing and undoes itself.
    """

    steps: tuple[str, ...]
    ends: str = "new"
    first: Point | None = None
    safety: bool = True
    spoilt: bool = False

    def run(self, ground: Ground) -> None:
        """Do it in this process, which may end in it."""
        federation = ground.open()
        if self.first is not None:
            restore.recover(federation)
            return
        try:
            restore.restore(federation, ground.checkpoint, safety=self.safety)
        except Refused as error:
            if not (self.spoilt and error.code == "body-differs"):
                raise


#: Of the others than a restore, whose every step is killed in every way, only so much as is their own.
ACTS = {
    "restore": Act(steps=(
        "begin journal", "body.stage", "soul.stage", "soul.animate", "wait for acks", "drain", "journal closing",
        "soul.shut_out", "confirm", "body.displace", "journal switching", *_SWITCH, *_SEAL, *_END)),
    "undo": Act(steps=("body.switch_back", "soul.switch_back", *_REMOVE), ends="old", spoilt=True),
    "recover on": Act(steps=(*_SWITCH, *_SEAL, *_END), first=Point("restore", "body.switch", "after", "group")),
    "recover back": Act(steps=_REMOVE, ends="old", first=Point("restore", "body.displace", "after", "group")),
    "no safety": Act(steps=("safety: displaced", "journal discarding", "soul.discard", "body.unpin", *_END),
                     safety=False),
}
