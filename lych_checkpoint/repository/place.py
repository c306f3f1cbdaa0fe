"""Read a repository without git: where its parts lie, which commit HEAD is, and a stamp that tells when it moved.

This is all that runs in the window: a few small reads per repository, no process.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import Refused

#: Stands for the commit of a repository that cannot be read and was kept whole instead.
UNREADABLE = "0" * 40
#: Files of the git directory that show another git at work or an operation half done.
BUSY = {
    "index.lock": "another git holds its index", "HEAD.lock": "another git holds its HEAD",
    "MERGE_HEAD": "a merge is in progress", "CHERRY_PICK_HEAD": "a cherry-pick is in progress",
    "REVERT_HEAD": "a revert is in progress", "rebase-merge": "a rebase is in progress",
    "rebase-apply": "a rebase is in progress", "sequencer": "a sequence of commits is being applied",
    "BISECT_LOG": "a bisection is in progress",
}
_OBJECT_ID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SYMBOLIC = b"ref: "
_MAX_DEPTH = 5
#: What a file may hold that names a commit or a directory; what `packed-refs` may, with some millions of refs; and
#: what git itself reads at most of attributes.
_NAME_BYTES, _PACKED_BYTES, _ATTRIBUTES_BYTES = 1 << 16, 1 << 29, 100 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """The commit that is checked out, and its branch (``refs/heads/`` cut off); empty when detached."""

    commit: str
    branch: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """What moves when a repository does: HEAD, its ref, the index's stat, and what is in progress."""

    head: bytes
    ref: bytes
    index: tuple[int, ...]
    busy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repository:
    """Where a repository's parts lie; absolute. ``common`` differs from ``git_dir`` in a linked worktree."""

    directory: Path
    git_dir: Path
    common: Path

    @classmethod
    def at(cls, directory: Path) -> Repository:
        """Find the parts of the repository whose working tree is ``directory``; parents are not searched.

        Raises:
            Refused: there is none (``no-repository``), it is bare, or it is broken.
        """
        dot_git = directory / ".git"
        try:
            git_dir = _follow_file(dot_git) if dot_git.is_file() else dot_git
            if not git_dir.is_dir():
                raise _none_at(directory)
            pointer = git_dir / "commondir"
            common = git_dir
            if pointer.is_file():
                common = git_dir / os.fsdecode(plain_bytes(pointer, _NAME_BYTES).rstrip(b"\n"))
            if (common / "reftable").is_dir():
                raise Refused("keeps its refs in a reftable, which this release cannot read", str(directory),
                              "git refs migrate --ref-format=files", "reftable")
            if not ((git_dir / "HEAD").is_file() and (common / "objects").is_dir() and (common / "refs").is_dir()):
                raise _broken(directory, "HEAD, objects or refs is missing")
        except OSError as error:
            raise _broken(directory, str(error)) from error
        return cls(directory, git_dir.resolve(), common.resolve())

    @property
    def index(self) -> Path:
        """The index file."""
        return self.git_dir / "index"

    @property
    def objects(self) -> Path:
        """The object directory."""
        return self.common / "objects"

    def head(self) -> Head:
        """Return what is checked out.

        Raises:
            Refused: HEAD names a branch without a commit (``unborn``), or cannot be read (``broken``).
        """
        name, value = _SYMBOLIC, self._read(b"HEAD")
        for _ in range(_MAX_DEPTH):
            if _OBJECT_ID.fullmatch(value):
                return Head(value.decode(), _branch(name))
            name = value.removeprefix(_SYMBOLIC).strip()
            if not value.startswith(_SYMBOLIC) or not name.startswith(b"refs/") or b".." in name:
                raise _broken(self.directory, "HEAD names no commit")
            value = self._read(name) or self._packed(name)
            if not value:
                raise Refused(f"the branch {os.fsdecode(name)} has no commit yet", str(self.directory),
                              "commit something there first", "unborn")
        raise _broken(self.directory, "HEAD goes round in circles")

    def tip(self, branch: str) -> str:
        """Return the commit of a branch, empty where there is none."""
        name = b"refs/heads/" + os.fsencode(branch)
        value = self._read(name) or self._packed(name)
        return value.decode() if _OBJECT_ID.fullmatch(value) else ""

    def attributes(self) -> bytes:
        """Return the attributes that are the repository's own, beside those in its files.

        Raises:
            Refused: they are no plain file (``broken``).
        """
        try:
            return plain_bytes(self.common / "info" / "attributes", _ATTRIBUTES_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _broken(self.directory, str(error)) from error

    def busy(self) -> tuple[str, ...]:
        """Return the names of `BUSY` that are there."""
        return tuple(name for name in BUSY if os.path.lexists(self.git_dir / name))

    def stamp(self) -> Stamp:
        """Return the stamp; two equal ones with no event between them mean that nothing moved."""
        head = self._read(b"HEAD")
        ref = b""
        if head.startswith(_SYMBOLIC):
            name = head.removeprefix(_SYMBOLIC)
            ref = self._read(name) or repr(_stat(self.common / "packed-refs")).encode()
        return Stamp(head, ref, _stat(self.index), self.busy())

    def _read(self, name: bytes) -> bytes:
        # HEAD, and refs that are a worktree's own, lie in its git directory; all others are shared.
        own = name == b"HEAD" or name.startswith((b"refs/worktree/", b"refs/bisect/"))
        try:
            place = self.git_dir if own else self.common
            return plain_bytes(os.path.join(place, os.fsdecode(name)), _NAME_BYTES).strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return b""
        except OSError as error:
            raise _broken(self.directory, str(error)) from error

    def _packed(self, name: bytes) -> bytes:
        try:
            packed = plain_bytes(self.common / "packed-refs", _PACKED_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _broken(self.directory, str(error)) from error
        found = re.search(rb"^([0-9a-f]{40,64}) " + re.escape(name) + rb"$", packed, re.MULTILINE)
        return found[1] if found else b""


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


def _branch(ref: bytes) -> str:
    """Return the branch's name; empty, as if detached, where a lock, which is UTF-8, could not hold it."""
    try:
        return ref.removeprefix(b"refs/heads/").decode() if ref.startswith(b"refs/heads/") else ""
    except UnicodeDecodeError:
        return ""


def _follow_file(dot_git: Path) -> Path:
    text = plain_bytes(dot_git, _NAME_BYTES)
    if not text.startswith(b"gitdir: "):
        raise OSError(f"{dot_git} is a file that names no git directory")
    target = dot_git.parent / os.fsdecode(text.removeprefix(b"gitdir: ").rstrip(b"\n"))
    if not target.is_dir():
        raise OSError(f"{dot_git} names {target}, which is not there")
    return target


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def looks_bare(directory: Path) -> bool:
    """Whether ``directory`` is itself a git directory."""
    return all((directory / name).exists() for name in ("HEAD", "objects", "refs"))


def _none_at(directory: Path) -> Refused:
    if looks_bare(directory):
        return Refused("is a bare repository: it has no working tree to save", str(directory),
                       "name a clone with a working tree in LYCH_CORE or LYCH_EXTENSIONS", "bare")
    return Refused("is not a git repository", str(directory),
                   "create it there, or take it out of LYCH_CORE or LYCH_EXTENSIONS", "no-repository")


def _broken(directory: Path, why: str) -> Refused:
    return Refused(f"the repository is broken: {why}", str(directory), "git fsck, or restore it", "broken")
