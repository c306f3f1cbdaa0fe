"""What the last checkpoint sealed of a commit is not asked of git again; what it did not seal is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lych_checkpoint import body, coordinator
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.repository.objects import Reader
from tests.fixtures.federation import commit

ALL = ["core", "alpha", "beta"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that were asked what their commits hold; whoever reads it empties it."""
    found, ask = list[str](), Reader.lockfiles

    def noted(self: Reader, repository: object, *rest: object) -> object:
        found.append(repository.directory.name)  # type: ignore[attr-defined]
        return ask(self, repository, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "lockfiles", noted)
    return found


def test_a_scan_asks_only_for_commits_that_were_not_sealed(federation_root: Path, asked: list[str]) -> None:
    members = body.discover(federation_root, "core", ("extensions/*",))
    first = body.scan(members)
    commit(federation_root / "core", {"uv.lock": "new\n"})
    asked.clear()
    again = body.scan(members, known=first.pins)
    assert asked == ["core"]
    assert again.pins == body.scan(members).pins
    assert again.pins[0].lockfiles.keys() == {"uv.lock"}
    asked.clear()
    body.scan(members, known=[replace(pin, path=f"{pin.path}/clone") for pin in again.pins])
    assert sorted(asked) == sorted(ALL)  # what another repository holds of the same commit proves nothing here
    captured = [replace(pin, captured=pin.commit, lockfiles={}) for pin in again.pins]
    assert body.scan(members, known=captured).pins == again.pins  # a captured tree holds others than its commit


def test_the_next_create_knows_what_the_last_one_sealed(
    opened: Callable[..., Federation], federation_root: Path, asked: list[str],
) -> None:
    federation = opened()
    locks = []
    for expected in (ALL, [], ["core"], ALL):
        if expected == ["core"]:
            commit(federation_root / "core", {"uv.lock": "new\n"})
        if locks and expected == ALL:  # somebody changed what the last one sealed
            last = federation.vault.path(locks[-1].checkpoint) / "lychd.lock"
            last.write_text(last.read_text().replace("sha256:", "sha256:0", 1))
        asked.clear()
        made = coordinator.create(federation, coordinator.Request())
        assert sorted(asked) == sorted(expected)
        locks.append(BodyLock.loads((federation.vault.path(made["id"]) / "lychd.lock").read_text()))
    assert locks[0].repos == locks[1].repos
    assert locks[2].repos == locks[3].repos
