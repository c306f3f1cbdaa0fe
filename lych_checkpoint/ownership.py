"""What root makes in somebody's repository or vault belongs to that somebody, who could not go on there else."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from lych_checkpoint.process import Owner


def hand_over(directory: Path, owner: Owner | None, paths: Collection[bytes] | None = None) -> None:
    """Give to ``owner`` what root owns below ``directory``; None, see `owner_of`, gives nothing.

    Args:
        directory: a real directory; itself included.
        owner: from `owner_of`.
        paths: relative ones; only these and the directories that lead to them. All if None.

    No link is followed, and a file with a second name keeps its owner: that name may lie anywhere.
    """
    if owner is None:
        return
    top = os.fsencode(directory)
    wanted = None if paths is None else {part for path in paths for part in _lineage(path)}
    # fwalk opens each directory itself and compares it with what it listed: its names cannot be exchanged for others.
    for folder, names, files, descriptor in os.fwalk(top):
        place = os.path.relpath(folder, top)
        inside = {name: name if place == b"." else os.path.join(place, name) for name in (*names, *files)}
        if wanted is not None:
            inside = {name: path for name, path in inside.items() if path in wanted}
            names[:] = [name for name in names if name in inside]
        if os.fstat(descriptor).st_uid == 0:
            os.chown(descriptor, owner.uid, owner.gid)
        for name in inside:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if found.st_uid == 0 and not stat.S_ISDIR(found.st_mode) and found.st_nlink == 1:
                os.chown(name, owner.uid, owner.gid, dir_fd=descriptor, follow_symlinks=False)


def owner_of(directory: Path) -> Owner | None:
    """Return who is to own what is made in ``directory``, or None where that needs no care.

    None unless this process is root and the directory, or the nearest one above it that exists, is another user's.
    """
    if os.geteuid() != 0:
        return None
    owner = Owner.of(next(one for one in (directory, *directory.parents) if one.exists()))
    return None if owner.is_me else owner


def make_directory(directory: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it, each owned like the one it is made in; ``mode`` is the last one's."""
    owner = owner_of(directory)
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(mode, parents=True, exist_ok=True)
    if owner is not None:
        for one in missing:
            os.chown(one, owner.uid, owner.gid)


def _lineage(path: bytes) -> list[bytes]:
    found = []
    while path:
        found.append(path)
        path = os.path.dirname(path)
    return found
