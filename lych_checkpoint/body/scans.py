"""Scan the body before the freeze, and prove in the window that it did not move since.

What is dear (status of every file) is done before. In the window there are a few small reads per repository and one
read of what inotify saw; only a repository that was touched is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.body import dirt
from lych_checkpoint.body.area import PLACE, safe_name
from lych_checkpoint.body.dirt import Policy
from lych_checkpoint.body.members import Member, each
from lych_checkpoint.body.watch import Watch
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import RepoPin, body_signature
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.capture import capture
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import inside, opened
from lych_checkpoint.repository.objects import Reader, reading
from lych_checkpoint.repository.place import BUSY, Repository, Stamp

#: Name that keeps a captured tree in its shadow between scan and pin.
_SCANNED = "refs/lych/scanned"
#: What git cannot hold is named up to here; a tree of caches may have millions.
_MOST_UNHELD = 1000
_REFUSE = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One repository as the scan found it. ``unheld`` is what a captured tree lacks, named for people.

    ``dirty``: whether its files are not as its commit says.
    """

    member: Member
    repository: Repository
    configuration: Configuration
    pin: RepoPin
    stamp: Stamp
    leave_out: tuple[bytes, ...]
    shadow: Path | None
    unheld: tuple[str, ...] = ()
    dirty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The whole body at one instant. ``watch`` is None where every re-check scans again."""

    seen: tuple[Seen, ...]
    watch: Watch | None
    policy: Policy

    @property
    def pins(self) -> tuple[RepoPin, ...]:
        """One pin per repository, sorted by path."""
        return tuple(one.pin for one in self.seen)

    @property
    def signature(self) -> str:
        """The body's signature."""
        return body_signature(self.pins)

    @property
    def unheld(self) -> dict[str, tuple[str, ...]]:
        """Under the policy ``capture``: by path, the ignored files and empty directories that no commit holds."""
        return {one.member.path: one.unheld for one in self.seen if one.unheld}

    @property
    def worktree_check(self) -> str:
        """How `recheck` knows of edits: ``inotify`` or ``rescan``."""
        return "inotify" if self.watch is not None and self.watch.complete else "rescan"


def scan(
    members: Sequence[Member], policy: Policy = _REFUSE, *, leave_out: Sequence[Path] = (),
    known: Sequence[RepoPin] = (), watch: Watch | None = None,
) -> Scan:
    """Look at every file of every repository.

    Args:
        members: from `discover`.
        policy: what to do with a dirty one.
        leave_out: absolute paths that are ours although they lie inside a repository.
        known: pins that were sealed earlier: what a commit holds is not asked again.
        watch: armed before each repository is looked at.

    Raises:
        Refused: a repository is dirty or busy (``dirty``, up to five paths named), holds a repository that is no
            member (``nested``, ``submodule``), is told to look away (``hidden``), cannot be captured (see
            `configuration.read` and `dirt.admit`), or is broken. Nothing was written but objects in the shadow.
    """
    # By its path too: a commit that two share says nothing of what the other one's store made of it.
    sealed = {(pin.path, pin.commit): pin for pin in known if not pin.captured}
    with reading() as reader:
        seen = each(
            lambda item: _look(reader, item[1], left_out_of(item[1], members, leave_out), policy, sealed, watch=watch,
                               number=item[0]),
            enumerate(members),
        )
    return Scan(seen=tuple(seen), watch=watch, policy=policy)


@contextmanager
def scanning(
    members: Sequence[Member], policy: Policy = _REFUSE, *, leave_out: Sequence[Path] = (),
    known: Sequence[RepoPin] = (),
) -> Iterator[Scan]:
    """Like `scan`, and watch every directory from before it until the end of the `with`."""
    watch = Watch.open()
    try:
        yield scan(members, policy, leave_out=leave_out, known=known, watch=watch)
    finally:
        if watch is not None:
            watch.close()


def recheck(scan: Scan) -> None:
    """Make sure that the body is what was scanned.

    Raises:
        Refused: a commit, branch or file moved, or an operation began (``body-moved``).
    """
    touched = scan.watch.touched() if scan.watch is not None else set()
    complete = scan.watch is not None and scan.watch.complete
    again = []
    for number, one in enumerate(scan.seen):
        now = one.repository.stamp()
        if (now.head, now.ref, now.busy) != (one.stamp.head, one.stamp.ref, one.stamp.busy):
            why = BUSY[now.busy[0]] if now.busy else "HEAD or its branch moved"
            raise Refused(f"{why} since it was scanned", one.member.path, "", "body-moved")
        if not complete or number in touched or now.index != one.stamp.index:
            again.append(one)
    if again:
        with reading() as reader:
            each(lambda one: _compare(reader, one, scan.policy), again)


def _compare(reader: Reader, one: Seen, policy: Policy) -> None:
    try:
        found = _look(reader, one.member, one.leave_out, policy,
                      {(one.pin.path, one.pin.commit): one.pin}, again=True)
    except Refused as error:
        raise Refused(f"{error.what}, since it was scanned", one.member.path, "", "body-moved") from error
    if found.pin != one.pin:
        raise Refused("its files or its commit moved since it was scanned", one.member.path, "", "body-moved")


def _look(
    reader: Reader, member: Member, leave_out: tuple[bytes, ...], policy: Policy,
    sealed: Mapping[tuple[str, str], RepoPin], *, watch: Watch | None = None, number: int = 0, again: bool = False,
) -> Seen:
    repository = Repository.at(member.directory)
    stamp = repository.stamp()
    if stamp.busy:
        raise Refused(BUSY[stamp.busy[0]], member.path, "end it first", "dirty")
    head = repository.head()
    configuration = configurations.read(repository)
    unheld: tuple[str, ...] = ()
    with opened(repository, configuration, head.commit, fresh=False, leave_out=leave_out) as lens:
        tracked = worktree.tracked(lens)
        _refuse_strange(member, tracked, leave_out, policy)
        if watch is not None:
            watch.arm(number, member.path, tracked.files, lens)
        else:
            worktree.refuse_endless(member.directory, member.path)
        changes = worktree.changes(lens)
        nested = [change for change in changes if change.path.endswith(b"/")]
        if nested:
            raise Refused(f"holds a repository that is no member: {worktree.shown(nested[0].path)}", member.path,
                          "list it in LYCH_EXTENSIONS, or ignore it in .gitignore", "nested")
        filtered = worktree.filtered(lens) if tracked.attributes or repository.attributes() else []
        if policy.captures and not again:
            unheld = _named(worktree.unheld(lens))
    store, captured, captured_tree = None, "", ""
    if policy.captures and policy.shadow is not None:
        store = policy.shadow / f"{safe_name(member.path)}.git"
    dirty = bool(changes or filtered or tracked.hidden)
    if dirty:
        if store is None and policy.dirty != "admit":
            raise dirt.refuse(member, changes, filtered)
        dirt.admit(member, changes, [*filtered, *tracked.hidden], policy.limit_bytes)
    if dirty and store is not None:
        captured, captured_tree = capture(repository, configuration, head.commit, store, _SCANNED, leave_out)
    if one := sealed.get((member.path, head.commit)):
        tree, lockfiles = one.tree, one.lockfiles
    else:
        tree, lockfiles = reader.lockfiles(repository, head.commit)
    if captured and store is not None:
        _, lockfiles = reader.lockfiles(repository, captured, (store / "objects",))
    pin = RepoPin(
        path=member.path, role=member.role, object_format=configuration.object_format, commit=head.commit,
        tree=tree, branch=head.branch, remote=configuration.remote, captured=captured, captured_tree=captured_tree,
        lockfiles=lockfiles,
    )
    return Seen(member=member, repository=repository, configuration=configuration, pin=pin, stamp=stamp,
                leave_out=leave_out, shadow=store, unheld=unheld, dirty=dirty)


def _named(paths: Sequence[bytes]) -> tuple[str, ...]:
    rest = (f"and {len(paths) - _MOST_UNHELD} more",) if len(paths) > _MOST_UNHELD else ()
    return tuple(worktree.shown(path) for path in paths[:_MOST_UNHELD]) + rest


def _refuse_strange(member: Member, tracked: worktree.Tracked, leave_out: tuple[bytes, ...], policy: Policy) -> None:
    strangers = [path for path in tracked.links if path not in leave_out]
    if strangers:
        raise Refused(f"holds a submodule that is no member: {worktree.shown(strangers[0])}", member.path,
                      "list it in LYCH_EXTENSIONS", "submodule")
    if tracked.hidden and not policy.captures and policy.dirty != "admit":
        raise Refused(f"git is told to look away from {worktree.shown(tracked.hidden[0])}", member.path,
                      "git update-index --no-assume-unchanged --no-skip-worktree FILE", "hidden")


def left_out_of(member: Member, members: Sequence[Member], paths: Sequence[Path]) -> tuple[bytes, ...]:
    """Return the paths inside ``member`` that are other members' or ours, relative to it."""
    ours = [*paths, member.root / PLACE, *(other.directory for other in members if other != member)]
    return inside(member.directory, [path.absolute() for path in ours])
