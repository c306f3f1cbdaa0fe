"""Capture a working tree byte for byte into a store of our own: no filter runs, the user's ``.git`` is not written.

The store (shadow) borrows objects from the repository and holds only what the repository has not.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.ownership import hand_over, make_directory, owner_of
from lych_checkpoint.repository import refs, worktree
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import Lens, opened, prepare
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.repository.scratch import scratch
from lych_checkpoint.repository.worktree import Folders, is_below, others, tracked

logger = logging.getLogger(__name__)

#: Modes that git keeps by itself; all others travel in the captured commit's message.
_GIT_MODES, _FOLDER_MODE = (0o644, 0o755), 0o755
_ALL_BITS, _PLAIN_BITS = 0o7777, 0o1777
#: The same tree on the same commit is to give the same captured commit.
_EPOCH = {"GIT_AUTHOR_DATE": "@0 +0000", "GIT_COMMITTER_DATE": "@0 +0000"}
_TITLE = "lych_checkpoint: a working tree, byte for byte\n\n"


def capture(
    repository: Repository, configuration: Configuration, head: str, shadow: Path, ref: str,
    leave_out: tuple[bytes, ...], spare: Collection[bytes] = (),
) -> tuple[str, str]:
    """Capture all files that are tracked or untracked, not those that are ignored.

    Args:
        repository: whose working tree.
        configuration: its configuration.
        head: the commit it is based on, parent of the captured one.
        shadow: directory of the store; made if missing.
        ref: name that keeps the captured commit in the store.
        leave_out: see `lens.opened`.
        spare: paths that are not captured, although they are tracked or untracked.

    Returns:
        The captured commit and its tree. The same files on the same commit give the same two.

    Raises:
        Refused: a file cannot be read.
    """
    modes = _plain_files(
        repository.directory, paths(repository, configuration, head, leave_out) - set(spare))
    object_format = configuration.object_format
    odd = {os.fsdecode(path): mode for path, mode in modes.items() if mode not in _GIT_MODES and mode}
    odd |= _odd_folders(repository.directory, modes)
    message = _TITLE + json.dumps(odd, sort_keys=True)
    with _store(shadow, object_format), scratch() as place:
        raw = Lens(git_dir=shadow, work_tree=repository.directory, objects=shadow / "objects", index=place / "index",
                   alternates=(repository.objects,), environment=_EPOCH)
        raw.git("update-index", "-z", "--add", "--stdin", stdin=b"".join(path + b"\0" for path in sorted(modes)))
        tree = raw.git("write-tree").out.decode().strip()
        commit = raw.git("commit-tree", "-p", head, tree, stdin=message.encode()).out.decode().strip()
        refs.keep_in(shadow, ref, commit, repository.objects)
    return commit, tree


@contextmanager
def _store(shadow: Path, object_format: str) -> Iterator[None]:
    """Hold a store, made where it is missing; two captures may meet in it, of two processes or hosts."""
    make_directory(shadow, 0o700)
    descriptor = os.open(shadow, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks; each has an index of its own at least
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        prepare(shadow, object_format=object_format, head="ref: refs/heads/none", raw=True)
        yield
        hand_over(shadow, owner_of(shadow.parent))
    finally:
        os.close(descriptor)


def paths(
    repository: Repository, configuration: Configuration, head: str, leave_out: tuple[bytes, ...],
) -> set[bytes]:
    """Return all that is tracked or untracked, and not ignored."""
    with opened(repository, configuration, head, leave_out=leave_out) as lens:
        listed = lens.git("ls-files", "-z", index=repository.index, accept=(0, 128))
        if listed.status:  # the index is broken: what HEAD tracks is the next best
            lens.git("read-tree", head)
        view = lens if listed.status else replace(lens, index=repository.index)
        known = tracked(view)
        found = {path for path in known.files if is_below(path) and not view.left_out(path)} - set(known.links)
        return found | {path for path in others(view) if not path.endswith(b"/")}


def _plain_files(directory: Path, paths: set[bytes]) -> dict[bytes, int]:
    """Return the mode of each path that is a file or symlink below real directories; a symlink's is 0."""
    folders = Folders(directory)
    found = {}
    for path in paths:
        mode = folders.mode(path)
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            found[path] = 0 if stat.S_ISLNK(mode) else stat.S_IMODE(mode)
    return found


def _odd_folders(directory: Path, files: Iterable[bytes]) -> dict[str, int]:
    """Return the modes, by path with a ``/`` at its end, of directories above ``files`` that git would not make."""
    known = Folders(directory)
    modes = {path: stat.S_IMODE(known.mode(path)) for path in _above(files)}
    return {os.fsdecode(path) + "/": mode for path, mode in modes.items() if mode != _FOLDER_MODE}


def _above(files: Iterable[bytes]) -> set[bytes]:
    """Return all directories above ``files``."""
    folders, above = set[bytes](), {os.path.dirname(path) for path in files} - {b""}
    while above:
        folders |= above
        above = {os.path.dirname(path) for path in above} - folders - {b""}
    return folders


def restore_modes(lens: Lens, commit: str) -> None:
    """Give files and directories the modes of the captured commit, those that git does not keep too.

    git leaves a file alone that has the right bytes and another mode than it would give, and makes new ones as the
    umask wants. Root gives no setuid or setgid bit: whoever wrote the tree wrote those bytes too.
    """
    message = lens.git("cat-file", "commit", commit).out.partition(b"\n\n")[2].decode()
    if not message.startswith(_TITLE):
        raise Refused("is not a captured commit", commit, "", "no-capture")
    odd: dict[str, int] = json.loads(message.removeprefix(_TITLE))
    kept = _PLAIN_BITS if os.geteuid() == 0 else _ALL_BITS
    for name in [name for name, mode in odd.items() if mode & ~kept]:
        logger.warning("%s does not get its setuid or setgid bit back", worktree.shown(os.fsencode(name)),
                       extra={"event": "body.bits_dropped"})
    wanted, folders = {**_plain_modes(lens, commit), **odd}, Folders(lens.work_tree)
    wrong = [name for name, mode in wanted.items()
             if stat.S_IMODE(folders.mode(os.fsencode(name.rstrip("/")))) != mode & kept]
    # Files before directories, inner ones before outer ones: behind a closed door nothing can be changed.
    for name in sorted(wrong, key=lambda name: (name.endswith("/"), -name.count("/"))):
        _set_mode(lens.work_tree, name, wanted[name] & kept)


def _plain_modes(lens: Lens, commit: str) -> dict[str, int]:
    """Return the modes that git keeps, by path, with a ``/`` at its end for directories; symlinks have none."""
    entries = [line.split(b"\t", 1) for line in lens.git("ls-tree", "-r", "-z", commit).out.split(b"\0") if line]
    files = {path: 0o755 if facts.startswith(b"100755") else 0o644
             for facts, path in entries if facts.startswith(b"100")}
    return {os.fsdecode(path): mode for path, mode in files.items()} | {
        os.fsdecode(path) + "/": _FOLDER_MODE for path in _above(path for _, path in entries)}


def _set_mode(directory: Path, name: str, mode: int) -> None:
    """Set a mode, by way of real directories only, and of nothing that has another name elsewhere."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open(directory, flags | os.O_DIRECTORY)
    try:
        for part in Path(name).parts:
            inner = os.open(part, flags, dir_fd=place)
            os.close(place)
            place = inner
        found = os.fstat(place)
        if stat.S_ISDIR(found.st_mode) if name.endswith("/") else stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            os.chmod(f"/proc/self/fd/{place}", mode)  # fchmod takes no such descriptor, any other needs more rights
    except (FileNotFoundError, NotADirectoryError):
        pass  # somebody was quicker, or a file of that name was moved aside
    finally:
        os.close(place)
