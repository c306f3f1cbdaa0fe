"""Make sure that every commit of a lock is at hand before anything visible changes: all of them, or none."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.body.area import Area, flush, safe_name
from lych_checkpoint.body.members import each
from lych_checkpoint.body.returning import Returning, copy
from lych_checkpoint.body.sound import Sound, homes, open_sound
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.manifest import BodyLock, RepoPin
from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.repository import bundles, chains, refs, worktree
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository.checkout import Goal, bring_to
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import opened
from lych_checkpoint.repository.objects import Reader, reading
from lych_checkpoint.repository.place import Repository

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one repository needs. ``sound`` is None where it must be made anew; ``files`` are the bundles for it.

    ``waiting`` is what an earlier restore set aside of it: taken whole, in place of one made from bundles alone.
    """

    pin: RepoPin
    sound: Sound | None
    files: list[Path]
    waiting: Path | None = None


def stage(lock: BodyLock, root: Path, bundles: Path, ticket: str) -> None:
    """Bring every commit of ``lock`` into its repository; make missing repositories aside. Workers may run.

    Where ``lock`` is of a body that a restore displaced, what that set aside whole comes back as it was.

    Args:
        lock: what is to come back.
        root: LYCH_ROOT.
        bundles: directory of the checkpoint's bundles.
        ticket: names this restore; keeps the commits under ``refs/lych/staged/<ticket>``.

    Raises:
        Refused: a commit is neither in its repository nor in a bundle (``missing-commit``), a bundle is damaged
            (``bundle-broken``), a commit has another tree than the lock says (``lock-tree``), or a repository that
            must be replaced cannot be moved (``not-movable``). Nothing visible changed and nothing is left staged.
    """
    area, returning = Area(root.absolute(), ticket), Returning.of(lock, root.absolute())
    with area.held(), reading() as reader:
        try:
            known = homes(area.root, [area.root / pin.path for pin in lock.repos])
            plans = each(lambda pin: _plan(reader, pin, lock.repos, area, bundles, known, returning), lock.repos)
            each(lambda plan: _carry_out(reader, plan, area), plans)
            each(lambda pin: returning.bring_files(pin.path, area), lock.repos)
            flush([area.path])
        except CheckpointError as error:
            try:
                unstage(lock, root, ticket)
            except CheckpointError as second:
                error.add_note(f"what was staged could not be removed: {second}")
            raise


def make_root(lock: BodyLock, root: Path, bundles: Path) -> None:
    """Make an empty ``root`` the repository that ``lock`` says it is, so that `stage` finds it; else do nothing.

    Any other repository is made aside and moved into place as a whole, which the root cannot be.

    Raises:
        Refused: no bundle holds its commit (``missing-commit``), or one is damaged (``bundle-broken``).
    """
    for pin in lock.repos:
        if pin.path == ".":
            _make(pin, root, _files(pin, bundles))


def lacking(commits: Mapping[str, str], root: Path, folder: Path) -> list[str]:
    """Return the repositories whose commit is neither in them nor in a bundle in ``folder``. Changes nothing."""

    def one(reader: Reader, path: str) -> bool:
        sound = open_sound(reader, root / path)
        return (sound is not None and reader.holds(sound.repository, commits[path])) or \
            bool(chains.reaching(folder, safe_name(path), commits[path]))

    with reading() as reader:
        held = each(lambda path: one(reader, path), list(commits))
    return [path for path, is_held in zip(commits, held, strict=True) if not is_held]


def is_staged(root: Path, ticket: str) -> bool:
    """Say whether something of this restore lies below this root."""
    return Area(root.absolute(), ticket).path.is_dir()


def unstage(lock: BodyLock, root: Path, ticket: str) -> None:
    """Remove what `stage` made. What a switch displaced and could not leave in place is kept.

    A ref in a repository that is broken by now stays, with a warning: it keeps a commit, and nothing else.
    """
    area = Area(root.absolute(), ticket)

    def one(pin: RepoPin) -> None:
        try:
            refs.drop(Repository.at(area.root / pin.path), f"{refs.STAGED}/{ticket}")
        except Refused as error:
            if error.code != "no-repository":
                logger.warning("%s/%s was left: %s", refs.STAGED, ticket, error, extra={"event": "body.ref_left"})

    each(one, lock.repos)
    area.clear()


def _plan(
    reader: Reader, pin: RepoPin, pins: Sequence[RepoPin], area: Area, folder: Path, known: Mapping[Path, Path],
    returning: Returning,
) -> _Plan:
    directory = area.root / pin.path
    sound = open_sound(reader, directory, known)
    try:
        if sound is not None and _answers(sound) and _holds(reader, sound.repository, pin):
            if reader.reads(sound.repository, pin.captured or pin.commit):
                return _Plan(pin, sound, [])
            sound = None  # what is there damaged cannot be fetched over
    except Refused as error:
        if error.code not in ("git-slow", "broken"):
            raise
        sound = None  # better now than while workers are frozen
    if sound is None:
        _refuse_immovable(pin, pins, directory)
        waiting = returning.repository(pin.path)
        kept = open_sound(reader, waiting) if waiting else None
        if kept is not None and reader.holds(kept.repository, pin.commit):
            return _Plan(pin, None, [] if _holds(reader, kept.repository, pin) else _files(pin, folder), waiting)
    return _Plan(pin, sound, _files(pin, folder))


def _files(pin: RepoPin, folder: Path) -> list[Path]:
    files = chains.reaching(folder, safe_name(pin.path), pin.captured or pin.commit)
    if not files:
        raise Refused(f"the commit {pin.commit[:12]} is neither in the repository nor in a bundle", pin.path,
                      "fetch it, or restore another checkpoint", "missing-commit")
    return files


def _holds(reader: Reader, repository: Repository, pin: RepoPin) -> bool:
    return all(reader.holds(repository, commit) for commit in {pin.commit, pin.captured or pin.commit})


def _answers(sound: Sound) -> bool:
    """Ask for a status, as `displace` will; whatever it says, it must say it."""
    with opened(sound.repository, sound.configuration, sound.head.commit, fresh=False) as lens:
        try:
            worktree.changes(lens)
        except Refused as error:
            if error.code == "git-slow":
                raise
    return True


def _refuse_immovable(pin: RepoPin, pins: Sequence[RepoPin], directory: Path) -> None:
    inner = [other.path for other in pins if other.path != pin.path and pin.path in (".", *_parents(other.path))]
    if pin.path == "." or (directory.exists() and inner):
        raise Refused("must be made anew, and other things live inside it", pin.path,
                      "repair or clone this repository by hand, then restore", "not-movable")
    parent = directory.parent
    while not parent.exists():
        parent = parent.parent
    if parent.stat().st_dev != next(one for one in (directory, *directory.parents) if one.exists()).stat().st_dev:
        raise Refused("is a mount point: it cannot be replaced as a whole", pin.path,
                      "repair or clone this repository by hand, then restore", "not-movable")


def _parents(path: str) -> list[str]:
    return [parent.as_posix() for parent in Path(path).parents]


def _carry_out(reader: Reader, plan: _Plan, area: Area) -> None:
    pin, goal = plan.pin, f"{refs.STAGED}/{area.ticket}"
    if plan.sound is None:
        _make_aside(reader, plan, area)
        return
    _complete(reader, plan.sound.repository, plan)
    refs.keep(plan.sound.repository, goal, pin.captured or pin.commit)


def _complete(reader: Reader, repository: Repository, plan: _Plan) -> None:
    if plan.files:
        bundles.fetch(repository, plan.pin.object_format, plan.files)
    _check(reader, repository, plan.pin)


def _make(pin: RepoPin, directory: Path, files: list[Path]) -> Repository:
    configuration = Configuration(object_format=pin.object_format, remote=pin.remote, conversions={})
    return bundles.make_repository(directory, configuration, files, pin.commit, pin.branch)


def _make_aside(reader: Reader, plan: _Plan, area: Area) -> None:
    pin = plan.pin
    build, ready = area.path / "build" / safe_name(pin.path), area.repository("new", pin.path)
    for left in (build, ready):
        if left.exists():
            shutil.rmtree(left)
    if plan.waiting is not None:
        copy(plan.waiting, build)  # what is in it is for the switch to say, as in any other that is there
        _complete(reader, Repository.at(build), plan)
    else:
        repository = _make(pin, build, plan.files)
        _check(reader, repository, pin)
        bring_to(repository, configurations.read(repository), Goal(pin.commit, pin.captured, pin.branch), None)
        hand_over(build, owner_of(area.root / pin.path))
    flush([build])
    ready.parent.mkdir(exist_ok=True)
    build.rename(ready)


def _check(reader: Reader, repository: Repository, pin: RepoPin) -> None:
    if not _holds(reader, repository, pin):
        raise Refused(f"the commit {pin.commit[:12]} is not whole, even with its bundle", pin.path,
                      "restore another checkpoint", "missing-commit")
    for commit, tree in ((pin.commit, pin.tree), (pin.captured, pin.captured_tree)):
        if commit and reader.tree(repository, commit) != tree:
            raise Refused(f"the commit {commit[:12]} has not the tree that the lock names", pin.path,
                          "lych-checkpoint verify", "lock-tree")
