"""One trip there and back: capture under load, ruin everything, restore, compare: the contract of all drivers."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lych_checkpoint import witness
from lych_checkpoint.database import connect, rows
from ops.contract import data
from ops.contract.place import Place, unique

_LOAD_S = 0.3
#: What `ruin` must have changed, or the comparison would prove nothing.
_RUINED = ("app.account", "app.load", "app.busy", "portrait", "grants", "constraints", "functions and triggers",
           "large objects")


@dataclass(frozen=True, slots=True)
class Trip:
    """What a trip came to. ``wrong`` says in sentences what was not as it must be; ``warned`` what preflight said.

    ``window_ms`` is what workers would have waited for, ``total_ms`` the whole capture without the load's own time,
    ``away_ms`` for how long of the restore no client was served.
    """

    wrong: tuple[str, ...]
    warned: tuple[str, ...]
    window_ms: float
    total_ms: float
    restore_ms: float
    away_ms: float


def travel(place: Place) -> Trip:
    """Go there and back once. The database is then what it was in the window, and nothing is kept of the trip.

    Raises:
        CheckpointError: the driver refused or failed.
    """
    soul, name = place.soul(), unique("c")
    warned = soul.preflight()
    folder = place.into / name / "soul"
    prepare, window, finish, staging, away = (_Watch() for _ in range(5))
    with ExitStack() as stack:
        with data.load(place.url):
            time.sleep(_LOAD_S)
            with prepare:
                capture = stack.enter_context(soul.capturing(name, folder))
            time.sleep(_LOAD_S)
        if place.driver == "dump":
            _run(place.url, "REFRESH MATERIALIZED VIEW app.total")  # pg_dump computes it anew
        with window:
            capture.begin()
            capture.take()
        frozen = data.picture(place.url)
        with window:
            capture.end()
        with data.load(place.url):
            time.sleep(_LOAD_S)  # what is written now must not come back
            with finish:
                facts = capture.finish()
    wrong = soul.verify(facts, folder, deep=True)
    data.ruin(place.url)
    ruined = data.picture(place.url)
    wrong += [f"{key} was not ruined" for key in _RUINED if ruined.get(key) == frozen[key]]
    generation = facts.generation + 1
    with staging:
        staged = place.staged(soul, facts, folder, name, generation)
    wrong += [f"{key} was visible before the switch" for key in _differing(ruined, data.picture(place.url))]
    with away:
        soul.shut_out()
        soul.switch(staged)
        soul.check(facts, generation, name)
        soul.let_in()
    wrong += [f"{key} did not come back" for key in _differing(frozen, data.picture(place.url))]
    if data.cold(place.url) != place.cold:
        wrong.append("app.cold is not what was made")
    with connect(place.url) as connection:
        known = witness.read(connection)
        if known is None or (known.state, known.generation, known.restored, known.journal) != (
                "restoring", generation, generation, name):
            wrong.append(f"the witness says {known}")
        witness.mark_awake(connection, name)
    soul.discard(soul.displaced(staged, facts))
    soul.discard(facts)
    return Trip(tuple(wrong), tuple(warned), window.ms, prepare.ms + window.ms + finish.ms, staging.ms + away.ms,
                away.ms)


class _Watch:
    """A stopwatch, for more than one stretch."""

    def __init__(self) -> None:
        self.ms = 0.0
        self._since_s = 0.0

    def __enter__(self) -> None:
        self._since_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.ms += (time.perf_counter() - self._since_s) * 1000


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _run(url: str, statement: str) -> None:
    with connect(url) as connection:
        rows(connection, statement)
