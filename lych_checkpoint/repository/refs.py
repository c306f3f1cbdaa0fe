"""Write refs: our own under ``refs/lych/``, and HEAD when a body is switched. A user's branch is never moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.repository.command import quoted, run
from lych_checkpoint.repository.ownership import hand_over_git, refuse_links
from lych_checkpoint.repository.place import Head, Repository

CHECKPOINTS = "refs/lych/checkpoints"
STAGED = "refs/lych/staged"
SAFETY = "refs/lych/safety"
#: The commit that holds the raw working tree of a dirty repository, beside the one it is based on.
CAPTURED = "refs/lych/captured"


def keep(repository: Repository, ref: str, commit: str, *, head: str = "") -> None:
    """Make ``ref`` hold ``commit`` against garbage collection.

    Args:
        repository: where.
        ref: full name.
        commit: an object that is there.
        head: HEAD must still be this commit, if given.

    Raises:
        Refused: HEAD moved (``body-moved``), or git failed; nothing was written.
    """
    # Not by `verify HEAD` in a transaction: git 2.39 writes that into HEAD's reflog, as a move to nothing.
    if head and repository.head().commit != head:
        raise Refused("HEAD moved since it was scanned", str(repository.directory), "", "body-moved")
    refuse_links(repository)
    _insist(lambda: run(repository.git_dir, "update-ref", ref, commit), repository.common, (ref,))
    hand_over_git(repository)


def keep_in(store: Path, ref: str, commit: str, borrowed: Path) -> None:
    """Make ``ref`` of a store of our own hold ``commit``, which may need objects that are ``borrowed``."""
    environment = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": quoted(borrowed)}
    _insist(lambda: run(store, "update-ref", ref, commit, environment=environment), store, (ref,))
    hand_over(store, owner_of(store.parent))


def drop(repository: Repository, *names: str) -> None:
    """Remove refs; where there is none it does nothing."""
    refuse_links(repository)
    _drop(repository.git_dir, repository.common, names)
    hand_over_git(repository)


def drop_in(store: Path, *names: str) -> None:
    """Remove refs of a store of our own."""
    _drop(store, store, names)
    hand_over(store, owner_of(store.parent))


def _drop(git_dir: Path, common: Path, names: Sequence[str]) -> None:
    stdin = "".join(f"delete {name}\n" for name in names).encode()
    _insist(lambda: run(git_dir, "update-ref", "--stdin", stdin=stdin), common, names)


def _insist(act: Callable[[], object], common: Path, names: Sequence[str]) -> None:
    """Do it, if need be once more without the locks of these refs, which are ours: a killed git left them."""
    try:
        act()
    except Refused:
        stale = [lock for lock in (common / f"{name}.lock" for name in names) if os.path.lexists(lock)]
        if not stale:
            raise
        for lock in stale:
            lock.unlink(missing_ok=True)
        act()


def set_head(repository: Repository, commit: str, branch: str, *, inherit: int | None = None) -> None:
    """Point HEAD at ``commit``: through ``branch`` if its tip is that commit already, else detached."""
    attached = branch if branch and repository.tip(branch) == commit else ""
    if repository.head() == Head(commit, attached):
        return  # git would write a reflog entry for nothing
    if attached:
        run(repository.git_dir, "symbolic-ref", "HEAD", f"refs/heads/{attached}", inherit=inherit)
    else:
        run(repository.git_dir, "update-ref", "--no-deref", "-m", "lych_checkpoint: restore", "HEAD", commit,
            inherit=inherit)
