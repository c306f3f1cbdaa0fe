"""Say how the body on disk stands to a lock or to a witness. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.body.area import safe_name
from lych_checkpoint.body.members import Member, each, find, listed_in
from lych_checkpoint.body.scans import left_out_of
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock, RepoPin, body_signature, witnessed
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.lens import opened
from lych_checkpoint.repository.objects import Reader, Verdict, reading
from lych_checkpoint.repository.place import BUSY, UNREADABLE, Repository

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """What is checked out in one repository."""

    commit: str
    tree: str


def verify(lock: BodyLock, root: Path, leave_out: Sequence[Path] = (), shadow: Path | None = None) -> list[str]:
    """Compare every file with the lock by content: a fresh index, never git's cache. No sentence, no difference.

    Args:
        lock: what should be there.
        root: LYCH_ROOT.
        leave_out: absolute paths that are ours although they lie inside a repository.
        shadow: stores of captured trees, needed for a displaced body that was dirty.
    """
    root = root.absolute()
    members = listed_in(root, lock.repos)
    ours = [*leave_out, root / "lychd.lock"]

    def one(item: tuple[Member, RepoPin]) -> list[str]:
        member, pin = item
        try:
            found = differences(member, pin, left_out_of(member, members, ours), shadow)
            return [f"{pin.path}: {what}" for what in found]
        except Refused as error:
            return [str(error)]

    return [sentence for found in each(one, zip(members, lock.repos, strict=True)) for sentence in found]


def differences(
    member: Member, pin: RepoPin, leave_out: tuple[bytes, ...], shadow: Path | None = None,
) -> Iterator[str]:
    """Say in what one repository is not as its pin says, every file compared by content. Arguments as of `verify`."""
    if pin.commit == UNREADABLE:
        if not member.directory.exists():
            yield "is missing"
        return
    repository = Repository.at(member.directory)
    head = repository.head()
    if head.commit != pin.commit:
        yield f"HEAD is {head.commit[:12]}, the lock says {pin.commit[:12]}"
    for name in repository.busy():
        yield BUSY[name]
    wanted = pin.captured or pin.commit
    stores = (shadow / f"{safe_name(pin.path)}.git" / "objects",) if shadow is not None else ()
    with opened(repository, configurations.read(repository), wanted, raw=bool(pin.captured), leave_out=leave_out,
                alternates=stores) as lens:
        lens.git("read-tree", wanted)
        changes = worktree.changes(lens)
    if changes:
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        yield "differs from the lock: " + ", ".join(str(change) for change in changes[:_NAMED]) + more


def relation(directory: Path, disk: Standing, witness_commit: str, witness_tree: str) -> Verdict:
    """Return how a repository stands to its witness; equal trees are ``aligned`` whatever their history.

    ``unknown``: the witness's commit is not there, or history was cut off before it, see `is_shallow`.
    """
    if witness_tree == disk.tree or disk.commit == witness_commit:
        return "aligned"
    try:
        repository = Repository.at(directory)
        with reading() as reader:
            return reader.relation(repository, disk.commit, witness_commit)
    except Refused:
        return "unknown"


def is_shallow(directory: Path) -> bool:
    """Whether a repository's history is cut off somewhere; False where there is none."""
    try:
        return (Repository.at(directory).common / "shallow").is_file()
    except Refused:
        return False


def survey(root: Path, core: str, extensions: Sequence[str]) -> dict[str, Standing]:
    """Return what is checked out, by path; a repository that is missing or cannot be read is left out."""
    with reading() as reader:
        found = each(lambda member: (member.path, _standing(reader, member)), find(root, core, extensions))
    return {path: standing for path, standing in found if standing is not None}


def _standing(reader: Reader, member: Member) -> Standing | None:
    try:
        repository = Repository.at(member.directory)
        commit = repository.head().commit
        return Standing(commit, reader.tree(repository, commit))
    except Refused:
        return None


def fingerprint(root: Path, core: str, extensions: Sequence[str]) -> dict[str, str]:
    """Return the commit of every repository by its path, read without git; empty where it cannot be read."""
    return {member.path: _commit(member) for member in find(root, core, extensions)}


def _commit(member: Member) -> str:
    try:
        return Repository.at(member.directory).head().commit
    except Refused:
        return ""


def pins(members: Sequence[Member]) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the body's signature and ``{path: {commit, tree}}`` as checked out, dirty or not: what a witness holds.

    Raises:
        Refused: a repository cannot be read.
    """
    with reading() as reader:
        found = each(lambda member: pin_of(reader, member), members)
    return body_signature(tuple(found)), witnessed(found)


def lockfiles(members: Sequence[Member]) -> dict[str, dict[str, str]]:
    """Return ``{path: {lockfile: sha256:…}}`` of the dependencies as checked out; repositories without any left out.

    Raises:
        Refused: a repository cannot be read.
    """
    with reading() as reader:
        found = each(lambda member: pin_of(reader, member), members)
    return {pin.path: pin.lockfiles for pin in found if pin.lockfiles}


def pin_of(reader: Reader, member: Member) -> RepoPin:
    """Return one repository as checked out, dirty or not.

    Raises:
        Refused: it cannot be read.
    """
    repository = Repository.at(member.directory)
    commit = repository.head().commit
    tree, lockfiles = reader.lockfiles(repository, commit)
    return RepoPin(path=member.path, role=member.role, object_format="sha256" if len(commit) == 64 else "sha1",
                   commit=commit, tree=tree, lockfiles=lockfiles)
