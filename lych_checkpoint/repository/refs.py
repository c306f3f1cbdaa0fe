"""Write refs: our own under ``refs/lych/``, and HEAD when a body is switched. A user's branch is never moved."""

from __future__ import annotations

from collections.abc import Sequence
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
    run(repository.git_dir, "update-ref", ref, commit)
    hand_over_git(repository)


def keep_in(store: Path, ref: str, commit: str, borrowed: Path) -> None:
    """Make ``ref`` of a store of our own hold ``commit``, which may need objects that are ``borrowed``."""
    run(store, "update-ref", ref, commit, environment={"GIT_ALTERNATE_OBJECT_DIRECTORIES": quoted(borrowed)})
    hand_over(store, owner_of(store.parent))


def drop(repository: Repository, *names: str) -> None:
    """Remove refs; where there is none it does nothing."""
    refuse_links(repository)
    _drop(repository.git_dir, names)
    hand_over_git(repository)


def drop_in(store: Path, *names: str) -> None:
    """Remove refs of a store of our own."""
    _drop(store, names)
    hand_over(store, owner_of(store.parent))


def _drop(git_dir: Path, names: Sequence[str]) -> None:
    run(git_dir, "update-ref", "--stdin", stdin="".join(f"delete {name}\n" for name in names).encode())


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
