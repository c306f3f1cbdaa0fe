"""What a restore set aside whole comes back as it was when the body that it displaced is the one to bring back.

A bundle holds commits. Other branches, the stash, configuration, hooks and ignored files are only in what was moved.
It is copied, never moved: it waits for as long as its safety copy does, so a restore that is undone loses nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lych_checkpoint.body.area import Area, safe_name
from lych_checkpoint.manifest import BodyLock
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.process import run

_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Returning:
    """What waits for one body; for a checkpoint that no restore displaced that is nothing."""

    area: Area

    @classmethod
    def of(cls, lock: BodyLock, root: Path) -> Returning:
        """Return what waits for the body of ``lock``: a safety copy bears the ticket of what displaced it."""
        return cls(Area(root, lock.checkpoint or "none"))

    def repository(self, path: str) -> Path | None:
        """Return where the repository ``path`` waits, by itself or inside one that was moved with it."""
        for outer in (PurePosixPath(path), *PurePosixPath(path).parents):
            place = self.area.repository("old", outer.as_posix())
            if (place := place / PurePosixPath(path).relative_to(outer)).is_dir():
                return place
        return None

    def bring_files(self, path: str, area: Area) -> None:
        """Have the switch of ``area`` put the repository's loose files back where nothing has taken their place."""
        name = safe_name(path)
        if (self.area.path / "old-files" / name).is_dir():
            copy(self.area.path / "old-files" / name, area.path / "new-files" / name)


def copy(source: Path, goal: Path) -> None:
    """Copy a directory with owners, modes, times and attributes, its bytes shared where the file system can.

    Raises:
        Refused: there is no room, or a file cannot be read.
    """
    if goal.exists():
        shutil.rmtree(goal)
    make_directory(goal.parent)
    run(["cp", "-a", "--reflink=auto", "--", source, goal], timeout_s=_TIMEOUT_S, mend="make room, then try again")
