"""Write refs: our own under ``refs/lych/``, and HEAD when a body is switched. A user's branch is never moved."""

from __future__ import annotations

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.command import run
from lych_checkpoint.repository.place import Repository

CHECKPOINTS = "refs/lych/checkpoints"
STAGED = "refs/lych/staged"
SAFETY = "refs/lych/safety"
#: The commit that holds the raw working tree of a dirty repository, beside the one it is based on.
CAPTURED = "refs/lych/captured"


def keep(repository: Repository, ref: str, commit: str, *, head: str = "") -> None:
    """Make ``ref`` hold ``commit`` against garbage collection, in one transaction.

    Args:
        repository: where.
        ref: full name.
        commit: an object that is there.
        head: HEAD must still be this commit, if given.

    Raises:
        Refused: HEAD moved (``body-moved``), or git failed; nothing was written.
    """
    verify = f"verify HEAD {head}\n" if head else ""
    script = f"start\n{verify}update {ref} {commit}\nprepare\ncommit\n"
    try:
        run(repository.git_dir, "update-ref", "--stdin", stdin=script.encode())
    except Refused:
        if head and repository.head().commit != head:
            raise Refused("HEAD moved since it was scanned", str(repository.directory), "", "body-moved") from None
        raise


def drop(repository: Repository, ref: str) -> None:
    """Remove ``ref``; none there is fine."""
    run(repository.git_dir, "update-ref", "-d", ref)


def set_head(repository: Repository, commit: str, branch: str, *, inherit: int | None = None) -> None:
    """Point HEAD at ``commit``: through ``branch`` if its tip is that commit already, else detached."""
    if branch and repository.tip(branch) == commit:
        run(repository.git_dir, "symbolic-ref", "HEAD", f"refs/heads/{branch}", inherit=inherit)
    elif repository.head_is_detached_at(commit):
        return
    else:
        run(repository.git_dir, "update-ref", "--no-deref", "-m", "lych_checkpoint: restore", "HEAD", commit,
            inherit=inherit)
