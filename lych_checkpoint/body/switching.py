"""Make a staged body the live one, and back. Every step may be killed and done again, in either direction."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lych_checkpoint.body.area import Area, Side, flush, safe_name
from lych_checkpoint.body.checking import differences
from lych_checkpoint.body.members import each, listed_in
from lych_checkpoint.body.scans import left_out_of
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock, RepoPin
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.checkout import Goal, bring_to, unlock
from lych_checkpoint.repository.place import UNREADABLE, Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """One switch: which body comes and which goes, and on which side of the area each waits.

    ``first``: none was begun under this ticket before, so none can have been cut off.
    """

    area: Area
    comes: BodyLock
    goes: BodyLock
    arriving: Side
    leaving: Side
    alone: bool
    first: bool
    shadow: Path
    leave_out: tuple[Path, ...]
    inherit: int


def switch(lock: BodyLock, root: Path, ticket: str, *, alone: bool = False) -> None:
    """Make every repository exactly what ``lock`` says, after `stage` and `displace` of the same ticket.

    Working tree, index and HEAD become the commit; a branch is taken only where its tip is that commit already, and
    never moved. Files in the way are moved aside; repositories that the lock does not know, too.

    Args:
        lock: what comes.
        root: LYCH_ROOT.
        ticket: names this restore.
        alone: no worker works in these repositories: locks are removed whose owners are proven dead.

    Raises:
        Refused: nothing was displaced under this ticket (``not-displaced``), a lock is held (``locked``), or git
            failed. What was done stays done: call it again, or `switch_back`.
    """
    _turn(lock, root, ticket, back=False, alone=alone)


def switch_back(displaced: BodyLock, root: Path, ticket: str, *, alone: bool = False) -> None:
    """Make the displaced body live again, after a whole or half `switch`. Arguments and errors as there."""
    _turn(displaced, root, ticket, back=True, alone=alone)


def clear_locks(lock: BodyLock, root: Path) -> None:
    """Remove the stale locks of the repositories of a body that `displace` found, before a switch meets them.

    Raises:
        Refused: the owner of one may live (``locked``).
    """
    def one(pin: RepoPin) -> None:
        if pin.commit != UNREADABLE:
            unlock(Repository.at(root / pin.path), alone=True)

    each(one, lock.repos)


def _turn(comes: BodyLock, root: Path, ticket: str, *, back: bool, alone: bool) -> None:
    area = Area(root.absolute(), ticket)
    with area.held() as descriptor:
        facts = area.recall()
        if not facts:
            raise Refused("nothing was displaced under this ticket", str(area.path), "", "not-displaced")
        if not back:
            area.remember({**facts, "arrived": comes.dumps()})
        elif "arrived" not in facts:
            return  # no switch ever began
        turn = _Turn(
            area=area, comes=comes, goes=BodyLock.loads(facts["arrived" if back else "displaced"], str(area.path)),
            arriving="old" if back else "new", leaving="new" if back else "old", alone=alone,
            first="arrived" not in facts,
            shadow=Path(facts["shadow"]), leave_out=tuple(Path(path) for path in facts["leave_out"]),
            inherit=descriptor,
        )
        _move_whole(turn)
        pins = [pin for pin in comes.repos if pin.commit != UNREADABLE]
        # Outer repositories first: one that comes back may bring the directory of an inner one.
        for depth in sorted({_depth(pin.path) for pin in pins}):
            each(lambda pin: _bring(turn, pin), [pin for pin in pins if _depth(pin.path) == depth])
        flush([area.root, *(area.root / pin.path for pin in pins)])


def _depth(path: str) -> int:
    return len(PurePosixPath(path).parts)


def _move_whole(turn: _Turn) -> None:
    """Rename what was staged or displaced as a whole into place, and what has no place in the coming body away."""
    area, wanted = turn.area, {pin.path for pin in turn.comes.repos}
    for path in sorted({*wanted, *(pin.path for pin in turn.goes.repos)}, key=lambda one: (_depth(one), one)):
        directory, waiting = area.root / path, area.repository(turn.arriving, path)
        arrives = os.path.lexists(waiting)  # a symlink to another repository is kept as one
        if arrives or (path not in wanted and (directory / ".git").exists()):
            if path == ".":
                raise Refused("the root itself is a repository and cannot be moved", str(area.root),
                              "repair it by hand, then lych-checkpoint recover", "not-movable")
            _put_away(directory, area.repository(turn.leaving, path))
        if arrives:
            _rename(waiting, directory)


def _put_away(directory: Path, goal: Path) -> None:
    try:
        # Empty, it is what a parent that has just arrived brought for its submodule: kept, it would come back later
        # to where nothing was.
        directory.rmdir()
    except OSError:
        _rename(directory, goal)


def _rename(source: Path, goal: Path) -> None:
    if not os.path.lexists(source):
        return
    make_directory(goal.parent)
    try:
        source.rename(goal)
    except OSError as error:
        raise Refused(f"cannot be moved to {goal}: {error.strerror}", str(source), "", "not-movable") from error


def _goal_of(pin: RepoPin) -> Goal:
    return Goal(pin.commit, pin.captured, pin.branch)


def _bring(turn: _Turn, pin: RepoPin) -> None:
    area = turn.area
    members = listed_in(area.root, turn.comes.repos)
    member = next(one for one in members if one.path == pin.path)
    repository = Repository.at(member.directory)
    worktree.refuse_endless(member.directory, pin.path)  # made since it was staged; undoing asks no git here
    unlock(repository, alone=turn.alone)
    goal = _goal_of(pin)
    leaving = next((_goal_of(one) for one in turn.goes.repos if one.path == pin.path), None)
    captured = goal.captured or (leaving is not None and leaving.captured)
    left_out = left_out_of(member, members, turn.leave_out)
    if turn.first and not captured:
        if leaving == goal and not any(differences(member, pin, left_out)):
            return  # as most are in most restores
        leaving = None  # all that it brought is in the index
    bring_to(
        repository, configurations.read(repository), goal, area.aside(turn.leaving, pin.path, repository),
        leaving=leaving,
        alternates=(turn.shadow / f"{safe_name(pin.path)}.git" / "objects",) if captured else (),
        leave_out=left_out, inherit=turn.inherit, within=area.workshop(),
    )
    area.forget_clearing(turn.arriving, pin.path)
