"""File systems on a loop device, and subvolumes on a Btrfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ops.servers.child import ServerError

Kind = Literal["btrfs", "ext4", "xfs"]


@contextmanager
def loop_mount(kind: Kind, *, size_gb: int = 8) -> Iterator[Path]:
    """Mount a fresh sparse image and yield its mount point; unmounted and removed after. Needs root.

    Raises:
        ServerError: a program of it is missing or failed, with its words.
    """
    home = Path(tempfile.mkdtemp(prefix=f"lych-{kind}-", dir=None if kind == "btrfs" else "/var/tmp"))
    home.chmod(0o711)
    image, point = home / "image", home / "mnt"
    point.mkdir()
    try:
        with image.open("wb") as file:
            os.truncate(file.fileno(), size_gb << 30)
        _run(f"mkfs.{kind}", "-q", image)
        _run("mount", "-o", "loop", image, point)
        point.chmod(0o755)
        try:
            yield point
        finally:
            _run("umount", point)
    finally:
        shutil.rmtree(home)


def is_btrfs(path: Path) -> bool:
    """Whether ``path`` lies on a Btrfs."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True)
    return done.stdout.strip() == "btrfs"


def make_pgdata_subvolume(path: Path) -> None:
    """Make ``path`` a Btrfs subvolume without copy-on-write, as a PGDATA wants it before initdb.

    Raises:
        ServerError: btrfs or chattr is missing or failed.
    """
    _run("btrfs", "subvolume", "create", path)
    _run("chattr", "+C", path)
    path.chmod(0o700)


def remove_with_subvolumes(directory: Path) -> None:
    """Remove ``directory`` and all in it, read-only snapshots too."""
    for root, names, _ in os.walk(directory, topdown=False):
        for name in names:
            path = Path(root) / name
            if path.stat(follow_symlinks=False).st_ino == 256:  # a subvolume's own top directory
                subprocess.run(["btrfs", "property", "set", path, "ro", "false"], check=False, capture_output=True)
    shutil.rmtree(directory)


def _run(*argv: str | Path) -> None:
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ServerError(f"the program {argv[0]} is missing") from error
    if done.returncode:
        raise ServerError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
