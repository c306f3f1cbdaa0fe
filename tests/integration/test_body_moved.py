"""A body that moves in the window, or is not what it should be: retried, refused or told, never sealed blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lych_checkpoint import coordinator, doctor, gate
from lych_checkpoint.body.watch import Watch
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.errors import GateRefused, Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock
from tests.fixtures.federation import commit, git, make_repository

Opened = Callable[..., Federation]


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch, federation_root: Path) -> Callable[[int], list[str]]:
    """Commit in core from inside the window, so many times; returns the list of the commits."""
    window = coordinator._window

    def move(times: int) -> list[str]:
        made: list[str] = []

        def moved(*arguments: Any) -> None:
            if len(made) < times:
                made.append(commit(federation_root / "core", {"later": f"{len(made)}\n"}))
            window(*arguments)

        monkeypatch.setattr(coordinator, "_window", moved)
        return made

    return move


@pytest.mark.parametrize(("seen", "check"), [(True, "inotify"), (False, "rescan")])
def test_a_commit_in_the_window_is_what_the_next_attempt_seals(
    opened: Opened, moving: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch, seen: bool, check: str,
) -> None:
    federation = opened()
    if not seen:
        monkeypatch.setattr(Watch, "open", lambda: None)
    made = moving(1)
    sealed = create(federation, Request())
    [wanted] = made
    lock = BodyLock.loads((federation.vault.path(sealed["id"]) / "lychd.lock").read_text())
    assert lock.commits["core"] == wanted
    assert federation.vault.manifest(sealed["id"]).worktree_check == check
    assert len(federation.vault.ids()) == 1


def test_a_body_that_never_stands_still_leaves_nothing(
    opened: Opened, moving: Callable[[int], list[str]], federation_root: Path,
) -> None:
    federation = opened()
    made = moving(99)
    with pytest.raises(Refused) as caught:
        create(federation, Request())
    assert caught.value.code == "body-moved"
    assert len(made) == coordinator._ATTEMPTS
    assert federation.vault.ids() == []
    assert not list((federation.vault.root / "checkpoints").iterdir())
    for name in ("core", "extensions/alpha", "extensions/beta"):
        assert git(federation_root / name, "for-each-ref", "refs/lych") == ""


def test_what_no_setting_names_and_what_is_gone_is_told(opened: Opened, federation_root: Path) -> None:
    federation = opened()
    gate.check(federation)
    make_repository(federation_root / "tools/stray", {"a": "1\n"})
    (federation_root / "extensions/beta").rename(federation_root.parent / "away")
    sealed = create(federation, Request())
    told = json.loads((federation.vault.path(sealed["id"]) / "manifest.json").read_bytes())["warnings"]
    assert [one.split(" ")[0] for one in told if "repository" in one] == ["tools/stray", "extensions/beta"]
    found = [one for one in doctor.doctor(federation) if one.check == "body"]
    assert [one.state for one in found if "tools/stray" in one.what] == [doctor.WARNING]


def test_a_bundle_that_brings_nothing_back_is_not_sealed(opened: Opened, federation_root: Path) -> None:
    """git packs a file of the wrong content as it is, and misses the right one only where it is fetched."""
    federation = opened()
    core = federation_root / "core"
    blobs = [git(core, "rev-parse", f"HEAD:{name}") for name in ("README", "core/__init__.py")]
    wrong, right = (core / ".git/objects" / blob[:2] / blob[2:] for blob in blobs)
    wrong.chmod(0o644)
    wrong.write_bytes(right.read_bytes())
    with pytest.raises(Refused) as caught:
        create(federation, Request())
    assert (caught.value.code, "core" in caught.value.what) == ("bundle-doubt", True)
    assert federation.vault.ids() == []
    assert git(core, "for-each-ref", "refs/lych") == ""


def test_the_gate_says_that_a_shallow_clone_knows_too_little(opened: Opened, federation_root: Path) -> None:
    core = federation_root / "core"
    federation = opened()
    commit(core, {"x": "2\n"})
    gate.check(federation)
    git(core, "reset", "-q", "--hard", "HEAD~1")
    side = commit(core, {"x": "3\n"})
    core.rename(federation_root / "whole")
    source = (federation_root / "whole").as_uri()
    git(federation_root, "clone", "-q", "--depth=1", "--no-single-branch", source, "core")
    assert git(core, "rev-parse", "HEAD") == side
    with pytest.raises(GateRefused) as caught:
        gate.check(federation)
    assert caught.value.code == "gate-unknown"
    assert "shallow" in caught.value.what
    assert "git fetch --unshallow" in caught.value.mend
