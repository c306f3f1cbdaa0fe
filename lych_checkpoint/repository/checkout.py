"""Bring a working tree to exactly one commit, so that it may be killed anywhere and done again.

The index is built anew and every file compared with it by content, so neither a stat cache nor a bit in the old index
can lie. What git does not hold is moved aside, not deleted. The index is installed last but one, HEAD last.
"""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.repository import capture, holders, refs
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import Lens, opened
from lych_checkpoint.repository.ownership import hand_over_git, refuse_links
from lych_checkpoint.repository.place import BUSY, Repository
from lych_checkpoint.repository.worktree import Folders, folders_above, is_below, others

_LOCKS = ("index.lock", "HEAD.lock", "packed-refs.lock")
_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Goal:
    """What a working tree is to become. ``captured`` holds its raw bytes where it was dirty on ``commit``."""

    commit: str
    captured: str = ""
    branch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """Where files go that are in the way (``files``), and where those of the way back wait (``waiting``).

    ``cleared`` marks that the way was cleared: afterwards a file at a wanted path may be our own half-written one.
    ``state`` takes what a merge or rebase in progress left in the git directory.
    """

    files: Path
    waiting: Path
    cleared: Path
    state: Path


def unlock(repository: Repository, *, alone: bool) -> None:
    """Remove a lock that we left ourselves; with ``alone`` any whose owner is proven dead, see `holders`.

    ``alone``: no git of ours or of a worker runs here.

    Raises:
        Refused: a lock is there and may be somebody's (``locked``).
    """
    ours, lock = repository.git_dir / "lych-index", repository.git_dir / "index.lock"
    if ours.exists() and lock.exists() and ours.samefile(lock):
        lock.unlink()
    for name in _LOCKS:
        held = repository.git_dir / name
        if alone:
            holders.remove_stale(repository, held)
        elif held.exists():
            raise Refused(f"another git holds {name}", str(repository.directory),
                          "wait for it; if none runs, remove the file", "locked")


def bring_to(
    repository: Repository, configuration: Configuration, goal: Goal, aside: Aside | None, *,
    leaving: Goal | None = None, alternates: Sequence[Path] = (), leave_out: Sequence[bytes] = (),
    inherit: int | None = None, within: Path | None = None,
) -> None:
    """Make the working tree, the index and HEAD those of ``goal``.

    Args:
        repository: free of locks, see `unlock`.
        configuration: its configuration.
        goal: every object of it is there, or in ``alternates``.
        aside: where to put what is in the way; None for a tree that we just made.
        leaving: what is there now, if that was captured, or if an earlier switch may have been cut off. What only a
            captured commit brought is moved aside, even where an ignore rule hides it by now.
        alternates: further object directories.
        leave_out: paths that are not touched.
        inherit: see `command.run`.
        within: where lenses are made.

    Raises:
        Refused: git failed, or another git took the index (``locked``); done again it goes on.
    """
    wanted = goal.captured or goal.commit
    refuse_links(repository)
    with opened(repository, configuration, wanted, raw=bool(goal.captured), alternates=alternates,
                leave_out=leave_out, inherit=inherit, within=within) as lens:
        before = _listed(lens, repository.index)
        _build(lens, wanted)
        target = _listed(lens, lens.index)
        captured = leaving.captured if leaving else ""
        # What a captured commit does not hold was too large for it, and is nowhere else. What a clean one holds and
        # the index does not, a switch the other way had brought when it was cut off.
        held = before & _files_of(lens, leaving) if captured else before | _files_of(lens, leaving, known=before)
        if aside is not None:
            _set_state_aside(repository, aside.state)
            _clear_the_way(lens, held, aside)
        lens.git("checkout-index", "-a", "-f", "-u", "-q", timeout_s=_TIMEOUT_S)
        _remove(lens, held - target)
        if aside is not None:
            for path in before - held - target:
                _move_if_there(lens.work_tree, path, aside.files)
            for path in others(lens):
                _move(lens.work_tree, path.rstrip(b"/"), aside.files)
            for path in _files_of(lens, leaving) - target if captured else ():
                _move(lens.work_tree, path, aside.files)
        _forget_bytecode(lens.work_tree, before | target, target)
        hand_over(repository.directory, owner_of(repository.directory), target)  # first: a mode must not be root's
        if goal.captured:
            capture.restore_modes(lens, goal.captured)
        else:
            _install_index(repository, lens.index)
    if goal.captured:
        # What git itself should find is the commit below, with the captured bytes as changes on top.
        with opened(repository, configuration, goal.commit, leave_out=leave_out, inherit=inherit,
                    within=within) as lens:
            _build(lens, goal.commit)
            _install_index(repository, lens.index)
    refs.set_head(repository, goal.commit, goal.branch, inherit=inherit)
    hand_over_git(repository)
    if aside is not None:
        _bring_back(repository.directory, aside.waiting)


def _build(lens: Lens, commit: str) -> None:
    lens.git("read-tree", commit)
    lens.git("update-index", "-q", "--refresh", accept=(0, 1), timeout_s=_TIMEOUT_S)


def _listed(lens: Lens, index: Path) -> set[bytes]:
    """Return an index's paths; none if git cannot read it, for then all that is there counts as in the way."""
    done = lens.git("ls-files", "-z", index=index, accept=(0, 128))
    return {path for path in done.out.split(b"\0")[:-1] if is_below(path) and not lens.left_out(path)}


def _files_of(lens: Lens, tree: Goal | None, known: Collection[bytes] = ()) -> set[bytes]:
    """Return those of its paths, but the ``known``, at which a file is now; none of a commit that cannot be read."""
    commit = tree.captured or tree.commit if tree else ""
    out = lens.git("ls-tree", "-r", "-z", "--name-only", commit, accept=(0, 128)).out if commit else b""
    folders = Folders(lens.work_tree)
    paths = (path for path in out.split(b"\0")[:-1]
             if path not in known and is_below(path) and not lens.left_out(path))
    return {path for path in paths if (mode := folders.mode(path)) and not stat.S_ISDIR(mode)}


def _clear_the_way(lens: Lens, held: set[bytes], aside: Aside) -> None:
    """Move aside, once, what nothing holds and is about to be overwritten: ignored files, above all."""
    if aside.cleared.exists():
        return
    differing = lens.git("ls-files", "-z", "-m").out.split(b"\0")[:-1]
    for path in sorted(set(differing) - held):
        folders = Folders(lens.work_tree)
        obstacle = folders.obstacle(path) or (path if folders.mode(path) else b"")
        if obstacle and not lens.left_out(obstacle):
            _move(lens.work_tree, obstacle, aside.files)
    aside.cleared.parent.mkdir(parents=True, exist_ok=True)
    aside.cleared.touch()
    for durable in (aside.cleared, aside.cleared.parent):
        _fsync(durable)


def _remove(lens: Lens, paths: Iterable[bytes]) -> None:
    root, folders = os.fsencode(lens.work_tree), Folders(lens.work_tree)
    for path in sorted(paths, reverse=True):
        mode = folders.mode(path)
        if mode and not stat.S_ISDIR(mode):
            os.unlink(os.path.join(root, path))


def _forget_bytecode(directory: Path, paths: Iterable[bytes], target: set[bytes]) -> None:
    """Remove bytecode beside tracked files, and directories that are empty then: they would import as packages."""
    root, folders = os.fsencode(directory), Folders(directory)
    kept = folders_above(target)
    for place in sorted(folders_above(paths), reverse=True):
        cache = os.path.join(place, b"__pycache__")
        if cache not in kept and folders.is_real(cache):
            shutil.rmtree(os.path.join(root, cache))
        if place and folders.is_real(place) and not os.listdir(os.path.join(root, place)):
            os.rmdir(os.path.join(root, place))


def _set_state_aside(repository: Repository, state: Path) -> None:
    for name in set(BUSY) - set(_LOCKS):
        source = repository.git_dir / name
        if os.path.lexists(source):
            _put(source, state, name)


def _move_if_there(directory: Path, path: bytes, files: Path) -> None:
    mode = Folders(directory).mode(path)
    if mode and not stat.S_ISDIR(mode):
        _move(directory, path, files)


def _move(directory: Path, path: bytes, files: Path) -> None:
    name = os.fsdecode(path)
    _put(directory / name, files, name)


def _put(source: Path, place: Path, name: str) -> None:
    goal = place / name
    if os.path.lexists(goal):  # a later file of the same name: kept too, but only the first is ever brought back
        place = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
        goal = place / name
    _make_folders(place, name, like=source)
    shutil.move(source, goal)


def _make_folders(place: Path, name: str, *, like: Path) -> None:
    """Make the folders of ``name`` in ``place``, owned and with modes as beside ``like``: they may return there."""
    place.mkdir(parents=True, exist_ok=True)
    original = like.parents[len(Path(name).parts) - 1]
    for folder in reversed(Path(name).parents[:-1]):
        made, found = place / folder, (original / folder).stat()
        if not made.exists():
            made.mkdir()
            made.chmod(stat.S_IMODE(found.st_mode))
            if os.geteuid() == 0:
                os.chown(made, found.st_uid, found.st_gid)


def _bring_back(directory: Path, waiting: Path) -> None:
    """Put files back that an earlier switch moved aside, where nothing has taken their place."""
    for folder, names, file_names in os.walk(waiting, topdown=True):
        place = directory / Path(folder).relative_to(waiting)
        for name in [*names, *file_names]:
            source, goal = Path(folder) / name, place / name
            if not os.path.lexists(goal) and place.is_dir():
                shutil.move(source, goal)
            elif _same_file(source, goal):
                source.unlink()
        names[:] = [name for name in names if (Path(folder) / name).is_dir() and (place / name).is_dir()]
    for folder, _, _ in os.walk(waiting, topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)


def _same_file(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _install_index(repository: Repository, index: Path) -> None:
    """Put our index where git's is, by git's own lock. The second name of the lock proves that it is ours."""
    unlock(repository, alone=False)
    ours, lock = repository.git_dir / "lych-index", repository.git_dir / "index.lock"
    ours.unlink(missing_ok=True)
    # The time of the index says which files are too fresh to trust their stat: it must stay what it was.
    shutil.copy2(index, ours)
    _fsync(ours)
    try:
        os.link(ours, lock)
    except FileExistsError as error:
        raise Refused("another git took the index", str(repository.directory), "", "locked") from error
    lock.rename(repository.index)
    ours.unlink()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
