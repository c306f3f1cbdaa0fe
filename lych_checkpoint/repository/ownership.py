"""A git directory keeps its owner, else that owner's next `git add` has "insufficient permission"."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lych_checkpoint.ownership import hand_over, owner_of
from lych_checkpoint.repository.parts import foreign
from lych_checkpoint.repository.place import Repository

#: What we write in a git directory beside refs and objects; git follows a symlink to a reflog, and so might we.
_WRITTEN = ("logs", "logs/HEAD", "lych-displaced", "lych-index")
_FAN_OUT = re.compile(r"[0-9a-f]{2}|pack|info")


def hand_over_git(repository: Repository) -> None:
    """Give a repository's git directory to the owner of its working tree, as far as it is root's now."""
    hand_over(repository.common, owner_of(repository.directory))


def refuse_links(repository: Repository) -> None:
    """Make sure that root, who may write anywhere, is led by no link out of another user's git directory.

    Raises:
        Refused: there is a symlink where we are about to write (``foreign-git-dir``).
    """
    if owner_of(repository.directory) is None:
        return
    for path in _written(repository):
        if path.is_symlink():
            raise foreign(repository.directory, f"{path} is a symlink where root would write", f"rm {path}")


def _written(repository: Repository) -> Iterator[Path]:
    for place in {repository.git_dir, repository.common}:
        yield from (place / name for name in _WRITTEN)
    ours = repository.common / "refs" / "lych"
    yield ours
    for folder, names, files in os.walk(ours):
        yield from (Path(folder, name) for name in (*names, *files))
    with os.scandir(repository.objects) as entries:
        yield from (Path(entry.path) for entry in entries if _FAN_OUT.fullmatch(entry.name))
