"""Bundles that build on those of the checkpoint before: what they hold, what they take, and how a rotten one ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.repository import chains
from tests.fixtures.federation import commit, git
from tests.fixtures.trees import contents
from tests.fixtures.workers import Lych

EXTENSIONS = ("extensions/*",)
#: Bytes that no compression makes small, for a repository whose whole bundle is much larger than a small change.
_BULK = "".join(f"{number * 2654435761 % 2**32:08x}" for number in range(4000))


class Shelf:
    """The bundles of one federation's checkpoints, each in a directory of its own that builds on the one before."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.core, self.shadow = root, root / "core", place / "shadow"
        self._place, self.made = place, []
        commit(self.core, {"bulk": _BULK})

    def add(self, before: Path | None = None, dirty: str = "refuse") -> tuple[BodyLock, Path]:
        """Make a checkpoint; it builds on ``before``, or on the last one made."""
        name = f"c{len(self.made)}"
        into = self._place / name
        members = body.discover(self.root, "core", EXTENSIONS)
        policy = body.Policy(dirty=dirty, shadow=self.shadow)
        with body.scanning(members, policy) as scan, body.pinned(scan, name):
            assert body.bundle(scan, name, into, before or (self.made[-1] if self.made else None)) == []
            self.made.append(into)
            return body.lock_of(scan, name, "now"), into

    def files(self, folder: Path) -> list[Path]:
        """The core's bundles, in order."""
        found = {file.name.split("-", 1)[1].partition(".")[2]: file for file in folder.glob("core-*")}
        return [found[name] for name in sorted(found, key=lambda name: (name != "bundle", name))]

    def lose_and_restore(self, lock: BodyLock, folder: Path) -> None:
        """Bring the core back from nothing but ``folder``."""
        shutil.rmtree(self.core)
        shutil.rmtree(self.shadow, ignore_errors=True)
        ticket = f"t-{folder.name}"
        body.stage(lock, self.root, folder, ticket)
        body.displace(body.find(self.root, "core", EXTENSIONS), self.root, ticket, self.shadow)
        body.switch(lock, self.root, ticket)
        assert body.verify(lock, self.root) == []
        assert git(self.core, "fsck", "--full", "--no-dangling") == ""


@pytest.fixture
def shelf(federation_root: Path, tmp_path: Path) -> Shelf:
    return Shelf(federation_root, tmp_path / "vault")


def collect(repository: Path) -> None:
    """Leave nothing of the old history in a repository, as a force push and a collection would."""
    for ref in git(repository, "for-each-ref", "--format=%(refname)", "refs/lych").split():
        git(repository, "update-ref", "-d", ref)
    git(repository, "checkout", "-q", "--orphan", "fresh")
    commit(repository, {"fresh": "f\n"})
    git(repository, "branch", "-q", "-D", "main")
    git(repository, "reflog", "expire", "--expire=now", "--all")
    git(repository, "gc", "-q", "--prune=now")


def test_only_what_is_new_is_written_and_one_checkpoint_needs_no_other(shelf: Shelf) -> None:
    _, first = shelf.add()
    commit(shelf.core, {"small": "1\n"})
    second_lock, second = shelf.add()
    third_lock, third = shelf.add()
    whole, added = shelf.files(third)
    assert added.stat().st_size < whole.stat().st_size / 10
    assert [os.path.samefile(*pair) for pair in zip([whole, added], shelf.files(second), strict=True)] == [True] * 2
    assert os.path.samefile(whole, shelf.files(first)[0])
    sealed = contents(shelf.core)
    shutil.rmtree(first)
    shutil.rmtree(second)
    shelf.lose_and_restore(third_lock, third)
    assert contents(shelf.core) == sealed
    assert second_lock.signature == third_lock.signature


def test_every_link_of_a_chain_comes_back_to_a_repository_that_lost_its_history(shelf: Shelf) -> None:
    states = []
    for number in range(3):
        commit(shelf.core, {f"file{number}": f"{number}\n"})
        states.append((*shelf.add(), contents(shelf.core)))
    collect(shelf.core)
    for lock, folder, sealed in reversed(states):
        body.stage(lock, shelf.root, folder, folder.name)
        body.displace(body.find(shelf.root, "core", EXTENSIONS), shelf.root, folder.name, shelf.shadow)
        body.switch(lock, shelf.root, folder.name)
        assert body.verify(lock, shelf.root) == []
        assert contents(shelf.core) == sealed
        body.unstage(lock, shelf.root, folder.name)


def test_a_commit_that_an_earlier_link_brings_takes_no_later_one_along(shelf: Shelf) -> None:
    shelf.add()
    commit(shelf.core, {"small": "1\n"})
    shelf.add()
    git(shelf.core, "checkout", "-q", "--detach", "HEAD~1")
    lock, third = shelf.add()
    assert len(shelf.files(third)) == 1
    shelf.lose_and_restore(lock, third)


def test_a_long_chain_begins_anew(shelf: Shelf) -> None:
    for number in range(chains.LONGEST + 1):
        commit(shelf.core, {"small": f"{number}\n"})
        lock, folder = shelf.add()
        assert len(shelf.files(folder)) == number % chains.LONGEST + 1
    assert not os.path.samefile(shelf.files(folder)[0], shelf.files(shelf.made[0])[0])
    shelf.lose_and_restore(lock, folder)


def test_captured_trees_are_links_of_the_chain(shelf: Shelf) -> None:
    shelf.add(dirty="capture")
    (shelf.core / "small").write_text("not committed\n")
    _, dirty = shelf.add(dirty="capture")
    assert [len(shelf.files(dirty)), len(shelf.files(shelf.add(dirty="capture")[1]))] == [2, 2]
    commit(shelf.core, {"small": "committed\n"})
    lock, folder = shelf.add(dirty="capture")
    assert len(shelf.files(folder)) == 3
    sealed = contents(shelf.core)
    shelf.lose_and_restore(lock, folder)
    assert contents(shelf.core) == sealed


def test_what_keeps_a_checkpoint_or_a_displaced_body_goes_from_repository_and_shadow(shelf: Shelf) -> None:
    (shelf.core / "small").write_text("not committed\n")
    shelf.add(dirty="capture")
    found = body.find(shelf.root, "core", EXTENSIONS)
    body.displace(found, shelf.root, "t1", shelf.shadow)
    [store] = shelf.shadow.glob("core-*")
    for name in ("c0", "t1"):
        for place in (shelf.core, store):
            assert name in git(place, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/lych").split()
        body.unpin(found, name, shelf.shadow)
        for place in (shelf.core, store):
            assert name not in git(place, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/lych").split()
    body.unpin(found, "c0", shelf.shadow)


@pytest.mark.parametrize("how", ["rotten", "unrelated", "shallow", "far"])
def test_what_cannot_be_built_on_is_written_whole(shelf: Shelf, how: str, tmp_path: Path) -> None:
    _, first = shelf.add()
    commit(shelf.core, {"small": "1\n"})
    if how == "rotten":
        [file] = shelf.files(first)
        data = file.read_bytes()
        file.write_bytes(data[:-60] + bytes([data[-60] ^ 1]) + data[-59:])
    elif how == "unrelated":
        collect(shelf.core)
    elif how == "shallow":
        shelf.core.rename(tmp_path / "source")
        git(shelf.root, "clone", "-q", "--depth=1", (tmp_path / "source").as_uri(), "core")
    else:
        far = Path("/dev/shm") / f"lych-{os.getpid()}"
        if not far.parent.is_dir() or far.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second file system at /dev/shm")
        shutil.move(first, far)
        first = far
    try:
        lock, second = shelf.add(before=first)
    finally:
        if how == "far":
            shutil.rmtree(first)
    assert [file.suffix for file in shelf.files(second)] == [".bundle", *([".shallow"] if how == "shallow" else [])]
    assert shelf.files(second)[0].stat().st_nlink == 1
    shelf.lose_and_restore(lock, second)


@pytest.mark.parametrize(("number", "damaged", "code"), [
    (0, False, "missing-commit"), (1, False, "missing-commit"),
    (0, True, "bundle-broken"), (1, True, "bundle-broken"),
])
def test_a_damaged_link_stops_a_restore_before_the_first_change(
    shelf: Shelf, number: int, damaged: bool, code: str,
) -> None:
    shelf.add()
    commit(shelf.core, {"small": "1\n"})
    lock, folder = shelf.add()
    file = shelf.files(folder)[number]
    data = file.read_bytes()
    file.unlink()
    if damaged:
        file.write_bytes(data[:-30] + b"\0" * 30)
    shutil.rmtree(shelf.core)
    with pytest.raises(Refused) as caught:
        body.stage(lock, shelf.root, folder, "t1")
    assert caught.value.code == code
    assert not shelf.core.exists()
    assert not (shelf.root / ".lych-stage").exists()


def test_sealed_chains_are_verified_whole_and_outlive_their_first_checkpoint(
    lych: Lych, federation_root: Path, lych_environment: dict[str, str],
) -> None:
    assert lych("init").code == 0
    first = lych("create", "--here", "--json").json["id"]
    commit(federation_root / "core", {"small": "1\n"})
    assert lych("create", "--here", "--json").code == 0
    checkpoints = Path(lych_environment["LYCH_VAULT"]) / "checkpoints"
    latest = checkpoints / lych("show", "latest", "--json").json["id"]
    added, base = sorted((latest / "body").glob("core-*"))
    assert added.name == base.name.replace(".bundle", ".1.bundle")
    assert lych("verify", first, "--json").json["previous"] == "first"
    assert lych("verify", "latest", "--json").json["previous"] == "here"
    kept = base.read_bytes()
    base.unlink()
    verified = lych("verify", "latest", "--json")
    assert (verified.code, f"body/{base.name} is missing" in verified.out) == (3, True)
    shutil.rmtree(federation_root / "core")
    assert lych("restore", "latest", "--yes", "--json").code == 3
    assert not (federation_root / "core").exists()
    base.write_bytes(kept)
    base.chmod(0o600)
    shutil.rmtree(checkpoints / first)
    verified = lych("verify", "latest", "--json")
    assert (verified.code, verified.json["previous"]) == (0, "gone")
    restored = lych("restore", "latest", "--yes", "--json")
    assert restored.code == 0, restored.out
    assert (federation_root / "core" / "small").read_text() == "1\n"
