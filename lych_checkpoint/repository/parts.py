"""Where the parts of a repository lie, and whether they are its own: a `.git` may name any place of the machine.

Whoever can write a working tree can write ``gitdir: /somewhere`` into it, and we may be root.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lych_checkpoint.errors import Refused

#: Files of a git directory that git opens whatever they are; a pipe would keep it for ever.
_OPENED = ("index", "config", "config.worktree", "packed-refs", "shallow", "info/attributes", "info/exclude",
           "info/sparse-checkout", "objects/info/alternates", "objects/info/commit-graph")
#: What a file may hold that names a commit or a directory.
MOST_NAME_BYTES = 1 << 16


def locate(directory: Path) -> tuple[Path, Path]:
    """Return the git directory and the shared one of the repository whose working tree is ``directory``, resolved.

    Raises:
        Refused: there is none (``no-repository``), it is bare or keeps a reftable, it is broken, or a part of it lies
            elsewhere and is not this working tree's (``foreign-git-dir``).
    """
    dot_git = directory / ".git"
    try:
        git_dir = _follow_file(dot_git) if dot_git.is_file() else dot_git
        if not git_dir.is_dir():
            raise _none_at(directory)
        git_dir = common = git_dir.resolve()
        pointer = git_dir / "commondir"
        if pointer.is_file():
            common = (git_dir / os.fsdecode(plain_bytes(pointer, MOST_NAME_BYTES).rstrip(b"\n"))).resolve()
            _refuse_another_trees(directory, git_dir, common)
        if (common / "reftable").is_dir():
            raise Refused("keeps its refs in a reftable, which this release cannot read", str(directory),
                          "git refs migrate --ref-format=files", "reftable")
        if not ((git_dir / "HEAD").is_file() and (common / "objects").is_dir() and (common / "refs").is_dir()):
            raise broken(directory, "HEAD, objects or refs is missing")
        _refuse_another_owners(directory, git_dir, common)
        _refuse_endless({git_dir, common})
    except OSError as error:
        raise broken(directory, str(error)) from error
    return git_dir, common


def is_inside(directory: Path, git_dir: Path) -> bool:
    """Whether the git directory is the plain directory ``.git`` of its working tree."""
    return os.path.join(os.path.realpath(directory), ".git") == os.fspath(git_dir)


def foreign(directory: Path, why: str, mend: str) -> Refused:
    """Return the error for a repository whose git directory is another's."""
    return Refused(why, str(directory), mend, "foreign-git-dir")


def _refuse_another_trees(directory: Path, git_dir: Path, common: Path) -> None:
    """Refuse the git directory of a linked worktree that is another's; only its repository can have made it."""
    if git_dir.parent != common / "worktrees":
        raise foreign(directory, f"its git directory {git_dir} is no worktree of {common}", "clone it again")
    try:
        back = git_dir / os.fsdecode(plain_bytes(git_dir / "gitdir", MOST_NAME_BYTES).rstrip(b"\n"))
    except FileNotFoundError:
        back = git_dir / "nowhere"
    # What it names may be gone: a worktree that was moved by hand, or that a restore moved aside.
    if os.path.lexists(back) and not back.samefile(directory / ".git"):
        raise foreign(directory, f"its git directory {git_dir} is that of {back.parent}",
                      "git worktree repair, or git worktree add another")


def _refuse_another_owners(directory: Path, git_dir: Path, common: Path) -> None:
    """Refuse parts that lie elsewhere and are another user's: as root we would write there, and give them away."""
    dot_git, links = directory / ".git", [common / name for name in ("objects", "refs")]
    apart = [path for path in links if path.is_symlink()]
    if not is_inside(directory, git_dir) or common != git_dir:
        apart += [git_dir, common, *links]
        if dot_git.lstat().st_uid != directory.stat().st_uid:
            raise foreign(directory, f"{dot_git} and its directory have different owners", f"chown -h {dot_git}")
    for path in apart:
        if path.stat().st_uid != directory.stat().st_uid:
            raise foreign(directory, f"its git directory leads to {path.resolve()}, which is another user's",
                          "clone it again, or chown what is yours")


def _refuse_endless(places: set[Path]) -> None:
    for path in (os.path.join(place, name) for place in places for name in _OPENED):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise OSError(f"{path} is no plain file")


def plain_bytes(path: str | Path, most: int) -> bytes:
    """Return what a plain file holds. One that stands for a pipe or a device would keep a reader for ever.

    Raises:
        OSError: it is none, holds more than ``most`` bytes, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise OSError(f"{path} is no plain file of at most {most} bytes")
        return os.read(descriptor, found.st_size + 1)
    finally:
        os.close(descriptor)


def _follow_file(dot_git: Path) -> Path:
    text = plain_bytes(dot_git, MOST_NAME_BYTES)
    if not text.startswith(b"gitdir: "):
        raise OSError(f"{dot_git} is a file that names no git directory")
    target = dot_git.parent / os.fsdecode(text.removeprefix(b"gitdir: ").rstrip(b"\n"))
    if not target.is_dir():
        raise OSError(f"{dot_git} names {target}, which is not there")
    return target


def looks_bare(directory: Path) -> bool:
    """Whether ``directory`` is itself a git directory."""
    return all((directory / name).exists() for name in ("HEAD", "objects", "refs"))


def _none_at(directory: Path) -> Refused:
    if looks_bare(directory):
        return Refused("is a bare repository: it has no working tree to save", str(directory),
                       "name a clone with a working tree in LYCH_CORE or LYCH_EXTENSIONS", "bare")
    return Refused("is not a git repository", str(directory),
                   "create it there, or take it out of LYCH_CORE or LYCH_EXTENSIONS", "no-repository")


def broken(directory: Path, why: str) -> Refused:
    """Return the error for a repository that cannot be read."""
    return Refused(f"the repository is broken: {why}", str(directory), "git fsck, or restore it", "broken")
