"""A git directory keeps its owner, else that owner's next `git add` has "insufficient permission"."""

from __future__ import annotations

from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.repository.place import Repository


def hand_over_git(repository: Repository) -> None:
    """Give a repository's git directory to the owner of its working tree, as far as it is root's now."""
    hand_over(repository.common, owner_of(repository.directory))
