"""Eras: to which present a message belongs. Values only, no I/O.

An era is the time between two restores; its number is the generation that the restore before it made, 0 before the
first. A restore of a checkpoint ends one era and goes on from a moment of that era, or of an older one: what came
after that moment is a future that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_STAMP = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a message says of its publishing.

    ``era`` as its publisher knew it; ``epoch`` of the last freeze that its publisher saw; ``at_ms`` by Redis's clock,
    never too early.
    """

    era: int
    epoch: int
    at_ms: int

    def dumps(self) -> str:
        """Return the header's text."""
        return f"{self.era}:{self.epoch}:{self.at_ms}"

    @classmethod
    def loads(cls, text: object) -> Stamp | None:
        """Read the header's text; None where there is none that can be read."""
        found = _STAMP.fullmatch(text) if isinstance(text, str) else None
        return cls(*map(int, found.groups())) if found else None


def header(uuid: str) -> str:
    """Return the name of the header in which messages of this federation carry their stamp."""
    return f"lych-{uuid[:8]}"


@dataclass(frozen=True, slots=True)
class Moment:
    """Where an era was left: the freeze of the checkpoint from which the next one went on."""

    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The era now, and those that it grew out of, each up to a moment."""

    era: int
    past: Mapping[int, Moment] = field(default_factory=dict)

    def refusal(self, stamp: Stamp | None) -> str:
        """Say why a message is not of this present; empty if it is. Before the first restore all are."""
        if not self.era:
            return ""
        if stamp is None:
            return "it does not say when it was published"
        if stamp.era == self.era:
            return ""
        left = self.past.get(stamp.era)
        if left is None:
            return f"it was published in generation {stamp.era}, of which nothing is left"
        if stamp.at_ms < left.at_ms and stamp.epoch <= left.epoch:
            return ""
        return f"it was published in generation {stamp.era} after the checkpoint that was brought back"


def present(lineage: Iterable[Mapping[str, Any]], restored: int) -> Present:
    """Return the present by the lineage.

    Args:
        lineage: its records.
        restored: the generation that the last restore made by the witness's word. Where that is one of which the
            lineage has no record, nothing of the past can be told.
    """
    restores = {int(one["generation"]): one for one in lineage if one["kind"] == "restore"}
    era = here = max(restored, *restores, 0)
    past: dict[int, Moment] = {}
    while "frozen_ms" in (record := restores.get(here, {})):
        # Generations only grow, and a restore makes one above all: this one lies below, so the loop ends.
        here = max((one for one in restores if one <= int(record["base"]) and one < here), default=0)
        past[here] = Moment(int(record["epoch"]), int(record["frozen_ms"]))
    return Present(era=era, past=past)


def gone(lineage: Iterable[Mapping[str, Any]]) -> list[range]:
    """Return the generations that restores took back for good, by the lineage.

    Each range ends before the generation that its restore made. What an undo brought back is in none of them.
    """
    restores = {int(one["generation"]): one for one in lineage if one["kind"] == "restore"}
    here, found = max(restores, default=0), []
    while "base" in (record := restores.get(here, {})):
        base = int(record["base"])
        found.append(range(base + 1, here))
        here = max((one for one in restores if one <= base and one < here), default=0)
    return found
