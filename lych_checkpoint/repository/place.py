"""Read a repository without git: where its parts lie, which commit HEAD is, and a stamp that tells when it moved.

This is all that runs in the window: a few small reads per repository, no process.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.parts import MOST_NAME_BYTES, broken, locate, plain_bytes

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
#: What `packed-refs` may hold, with some millions of refs, and what git itself reads at most of attributes.
_PACKED_BYTES, _ATTRIBUTES_BYTES = 1 << 29, 100 << 20


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
            Refused: see `parts.locate`.
        """
        return cls(directory, *locate(directory))

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
                raise broken(self.directory, "HEAD names no commit")
            value = self._read(name) or self._packed(name)
            if not value:
                raise Refused(f"the branch {os.fsdecode(name)} has no commit yet", str(self.directory),
                              "commit something there first", "unborn")
        raise broken(self.directory, "HEAD goes round in circles")

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
            raise broken(self.directory, str(error)) from error

    def busy(self) -> tuple[str, ...]:
        """Return the names of `BUSY` that are there."""
        place = os.fspath(self.git_dir)
        return tuple(name for name in BUSY if os.path.lexists(f"{place}/{name}"))

    def stamp(self) -> Stamp:
        """Return the stamp; two equal ones with no event between them mean that nothing moved."""
        head = self._read(b"HEAD")
        ref = b""
        if head.startswith(_SYMBOLIC):
            name = head.removeprefix(_SYMBOLIC)
            ref = self._read(name) or repr(_stat(f"{self.common}/packed-refs")).encode()
        return Stamp(head, ref, _stat(f"{self.git_dir}/index"), self.busy())

    def _read(self, name: bytes) -> bytes:
        # HEAD, and refs that are a worktree's own, lie in its git directory; all others are shared.
        own = name == b"HEAD" or name.startswith((b"refs/worktree/", b"refs/bisect/"))
        try:
            place = self.git_dir if own else self.common
            return plain_bytes(f"{place}/{os.fsdecode(name)}", MOST_NAME_BYTES).strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return b""
        except OSError as error:
            raise broken(self.directory, str(error)) from error

    def _packed(self, name: bytes) -> bytes:
        try:
            packed = plain_bytes(self.common / "packed-refs", _PACKED_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise broken(self.directory, str(error)) from error
        found = re.search(rb"^([0-9a-f]{40,64}) " + re.escape(name) + rb"$", packed, re.MULTILINE)
        return found[1] if found else b""


def _branch(ref: bytes) -> str:
    """Return the branch's name; empty, as if detached, where a lock, which is UTF-8, could not hold it."""
    try:
        return ref.removeprefix(b"refs/heads/").decode() if ref.startswith(b"refs/heads/") else ""
    except UnicodeDecodeError:
        return ""


def _stat(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
