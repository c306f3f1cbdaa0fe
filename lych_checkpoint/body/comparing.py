"""Compare two bodies, repository by repository: which commits come and go, and which lockfiles change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lych_checkpoint.body.checking import pin_of
from lych_checkpoint.body.members import Member, each, find
from lych_checkpoint.body.scans import left_out_of
from lych_checkpoint.body.sound import open_sound
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import RepoPin
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.lens import opened
from lych_checkpoint.repository.objects import Commits, Reader, Verdict, reading
from lych_checkpoint.repository.place import Repository

#: Commits that are named on each side; all are counted.
MOST_NAMED = 20
_SHALLOW = "history was cut off (a shallow clone): there may be more commits than are counted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one repository gets from an old body to a new one.

    ``relation`` is how the new commit stands to the old one; ``extra`` and ``missing``: only the new or only the old
    body has this repository. ``comes`` and ``goes`` are None where nobody can know, and ``why`` says so.
    ``captured``: whether the old and the new one had uncommitted files on top.
    """

    old: str = ""
    new: str = ""
    relation: Verdict | Literal["extra", "missing"] = "unknown"
    comes: Commits | None = None
    goes: Commits | None = None
    captured: tuple[bool, bool] = (False, False)
    lockfiles: dict[str, str] = field(default_factory=dict)
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry in `diff --json`."""
        return asdict(self)


def present(root: Path, core: str, extensions: Sequence[str]) -> tuple[RepoPin, ...]:
    """Return what is checked out, whatever lies on top; what is missing or cannot be read is left out."""
    with reading() as reader:
        found = each(lambda member: _present(reader, member), find(root, core, extensions))
    return tuple(pin for pin in found if pin is not None)


def _present(reader: Reader, member: Member) -> RepoPin | None:
    try:
        return pin_of(reader, member)
    except Refused:
        return None


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """How many files of a repository are not as its commit says, their bytes, and the first, as ``name (what)``."""

    count: int
    named: tuple[str, ...]
    size_bytes: int = 0


def uncommitted(
    members: Sequence[Member], root: Path, leave_out: Sequence[Path] = (),
) -> dict[str, Uncommitted | None]:
    """Return by path what lies on top of the commit that is checked out; None where that cannot be read.

    Args:
        members: from `find`.
        root: LYCH_ROOT.
        leave_out: absolute paths that are ours although they lie inside a repository.
    """
    ours = [*leave_out, root.absolute() / "lychd.lock"]
    with reading() as reader:
        found = each(lambda member: _uncommitted(reader, member, left_out_of(member, members, ours)), members)
    return {member.path: one for member, one in zip(members, found, strict=True)}


def _uncommitted(reader: Reader, member: Member, leave_out: tuple[bytes, ...]) -> Uncommitted | None:
    sound = open_sound(reader, member.directory)
    if sound is None:
        return None
    try:
        with opened(sound.repository, sound.configuration, sound.head.commit, fresh=False,
                    leave_out=leave_out) as lens:
            found = worktree.changes(lens)
    except Refused:
        return None
    return Uncommitted(len(found), tuple(str(change) for change in found[:MOST_NAMED]),
                       sum(_size_bytes(member.directory, change.path) for change in found))


def _size_bytes(directory: Path, path: bytes) -> int:
    try:
        return os.lstat(os.path.join(os.fsencode(directory), path)).st_size
    except OSError:
        return 0  # deleted


def compare(old: Sequence[RepoPin], new: Sequence[RepoPin], root: Path) -> dict[str, Comparison]:
    """Compare two bodies by the history in the repositories below ``root``; changes nothing there."""
    before, after = {pin.path: pin for pin in old}, {pin.path: pin for pin in new}
    paths = sorted({*before, *after}, key=lambda path: path.encode(errors="surrogateescape"))
    with reading() as reader:
        found = each(lambda path: _compare(reader, root / path, before.get(path), after.get(path)), paths)
    return dict(zip(paths, found, strict=True))


def _compare(reader: Reader, directory: Path, old: RepoPin | None, new: RepoPin | None) -> Comparison:
    if old is None or new is None:
        return Comparison(
            old=old.commit if old else "", new=new.commit if new else "", relation="missing" if old else "extra",
            captured=(bool(old and old.captured), bool(new and new.captured)),
            why="only the old body has it" if old else "only the new body has it",
        )
    lockfiles = {
        name: "changed" if name in old.lockfiles and name in new.lockfiles else
        "removed" if name in old.lockfiles else "added"
        for name in sorted({*old.lockfiles, *new.lockfiles})
        if old.lockfiles.get(name) != new.lockfiles.get(name)
    }
    relation, comes, goes, why = _history(reader, directory, old, new)
    return Comparison(old=old.commit, new=new.commit, relation=relation, comes=comes, goes=goes, why=why,
                      captured=(bool(old.captured), bool(new.captured)), lockfiles=lockfiles)


def _history(
    reader: Reader, directory: Path, old: RepoPin, new: RepoPin,
) -> tuple[Verdict, Commits | None, Commits | None, str]:
    if old.commit == new.commit:
        return "aligned", Commits(0, ()), Commits(0, ()), ""
    relation: Verdict = "aligned" if old.tree == new.tree else "unknown"
    try:
        repository = Repository.at(directory)
        lacking = [pin.commit[:12] for pin in (old, new) if not reader.has(repository, pin.commit)]
        if lacking:
            return relation, None, None, f"the repository on disk has no commit {' and no commit '.join(lacking)}"
        if relation != "aligned":
            relation = reader.relation(repository, new.commit, old.commit)
        comes = reader.commits(repository, new.commit, old.commit, MOST_NAMED)
        goes = reader.commits(repository, old.commit, new.commit, MOST_NAMED)
    except Refused as error:
        return relation, None, None, error.what
    return relation, comes, goes, _SHALLOW if (repository.common / "shallow").is_file() else ""
