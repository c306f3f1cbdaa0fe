"""What a working tree holds beside its commit: changes, paths that git was told to look away from, filters."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.lens import Lens

_WORDS = {"M": "modified", "T": "modified", "A": "added", "D": "deleted", "U": "unmerged"}
#: What an entry of a file or symlink that git looks at begins with in `ls-files -v -s`; all else needs a word.
_PLAIN = (b"H 100", b"H 120")
_PATH = re.compile(rb"\t([^\0]*)\0")
#: Files of a working tree that git reads by their names; git follows none of them that is a symlink.
_READ = frozenset((b".gitignore", b".gitattributes", b".gitmodules"))
_NEVER_BELOW = frozenset((b"", b".", b"..", b".git"))
_ATTRIBUTES = (b"\t.gitattributes\0", b"/.gitattributes\0")


@dataclass(frozen=True, slots=True)
class Change:
    """One path that is not as the commit says; ``what`` is one word."""

    what: str
    path: bytes

    def __str__(self) -> str:
        return f"{shown(self.path)} ({self.what})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What the index lists. ``hidden``: git is told not to look there. ``links``: commits of other repositories.

    ``attributes``: whether a file that may name a filter is among them.
    """

    files: tuple[bytes, ...]
    hidden: tuple[bytes, ...]
    links: tuple[bytes, ...]
    attributes: bool


def changes(lens: Lens) -> list[Change]:
    """Return what differs between HEAD, index and working tree, untracked files included, ignored ones not.

    Raises:
        Refused: a directory could not be read (``unreadable``), or git failed.
    """
    done = lens.git("status", "--porcelain=v2", "-z", "--untracked-files=all", "--ignore-submodules=all",
                    "--no-renames", "--no-ahead-behind")
    blind = [line for line in done.err.splitlines() if "could not open directory" in line]
    if blind:
        raise Refused(blind[0].removeprefix("warning: "), str(lens.work_tree), "make it readable", "unreadable")
    return [change for change in _parsed(done.out) if not lens.left_out(change.path)]


def _parsed(out: bytes) -> Iterator[Change]:
    for record in out.split(b"\0")[:-1]:
        kind = record[:1]
        if kind == b"?":
            yield Change("a repository that is no member" if record.endswith(b"/") else "untracked", record[2:])
        elif kind == b"u":
            yield Change("unmerged", record.split(b" ", 10)[10])
        else:
            letters = record[2:4].decode().replace(".", "")
            yield Change(_WORDS.get(letters[-1:], "changed"), record.split(b" ", 8)[8])


def tracked(lens: Lens) -> Tracked:
    """List the lens's index."""
    out = lens.git("ls-files", "-z", "-v", "-s").out
    files = tuple(_PATH.findall(out))
    plain = out.startswith(_PLAIN) + sum(out.count(b"\0" + word) for word in _PLAIN)
    odd = [entry for entry in out.split(b"\0")[:-1] if not entry.startswith(_PLAIN)] if plain < len(files) else []
    links = tuple(_path(entry) for entry in odd if entry[2:].startswith(b"160000"))
    # A lower-case letter is assume-unchanged, S is skip-worktree.
    hidden = tuple(_path(entry) for entry in odd if entry[:1].islower() or entry[:1] == b"S")
    return Tracked(files=files, hidden=hidden, links=links, attributes=any(name in out for name in _ATTRIBUTES))


def _path(entry: bytes) -> bytes:
    return entry.partition(b"\t")[2]


def filtered(lens: Lens) -> list[bytes]:
    """Return the tracked paths whose bytes a filter program makes: git does not hold them as they are."""
    without = (":(exclude,attr:!filter)", ":(exclude,attr:-filter)")
    return lens.git("ls-files", "-z", "--", *without).out.split(b"\0")[:-1]


def others(lens: Lens, *, directories: bool = False) -> list[bytes]:
    """Return untracked paths that are not ignored; a nested repository ends with ``/``.

    With ``directories`` a wholly untracked directory is one entry, an empty one too.
    """
    shorten = ("--directory",) if directories else ()
    found = lens.git("ls-files", "-z", "-o", "--exclude-standard", *shorten).out.split(b"\0")[:-1]
    return [path for path in found if not lens.left_out(path)]


def ignored(lens: Lens, directories: Iterable[bytes]) -> set[bytes]:
    """Return those of the directories that are ignored, themselves or by one above them."""
    # With `./` before it no name is taken for pathspec magic, such as `:(exclude)x`.
    listed = b"".join(b"./" + path + b"\0" for path in directories)
    found = lens.git("check-ignore", "-z", "--stdin", stdin=listed, accept=(0, 1)).out.split(b"\0")[:-1]
    return {path.removeprefix(b"./") for path in found}


def unheld(lens: Lens) -> list[bytes]:
    """Return what no commit of this working tree can hold: ignored paths, empty directories, pipes, devices, sockets.

    A directory ends with ``/``; of one that is wholly ignored only itself is named.
    """
    ignored = lens.git("ls-files", "-z", "-o", "-i", "--exclude-standard", "--directory").out.split(b"\0")[:-1]
    found = {path for path in ignored if not lens.left_out(path)}
    root = os.fsencode(lens.work_tree)
    for top in others(lens, directories=True):
        if top.endswith(b"/"):
            for folder, folders, files in os.walk(os.path.join(root, top)):
                path = os.path.relpath(folder, root) + b"/"
                folders[:] = [name for name in folders if name != b".git" and path + name + b"/" not in found]
                if not folders and not files and not lens.left_out(path):
                    found.add(path)
    return sorted(found | {path for path in _special(root, found) if not lens.left_out(path)})


def refuse_endless(directory: Path, name: str) -> None:
    """Make sure that git would end to read the working tree of the repository that people call ``name``.

    Raises:
        Refused: see `subfolders`.
    """
    waiting, root = [b""], os.fsencode(directory)
    while waiting:
        waiting += subfolders(root, waiting.pop(), name)


def subfolders(root: bytes, folder: bytes, name: str) -> list[bytes]:
    """Return the directories in one of the working tree of ``name``, but git's own; of what cannot be read git tells.

    Raises:
        Refused: git would open a file there and never end to read it (code ``broken``): a pipe called `.gitignore`
            keeps a status for ever. Of all others git looks at no more than the mode.
    """
    found, above = [], folder + b"/" if folder else b""
    with suppress(OSError), os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != b".git":
                    found.append(above + entry.name)
            elif entry.name in _READ and not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                raise Refused(f"{shown(above + entry.name)} is no file: git would read it for ever", name,
                              "remove it", "broken")
    return found


def _special(root: bytes, passed_over: Collection[bytes]) -> Iterator[bytes]:
    """Give what is neither file nor directory nor symlink. What cannot be read is passed over: git says so."""
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        with suppress(OSError), os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    path = os.path.join(folder, entry.name)
                    if entry.name != b".git" and path + b"/" not in passed_over:
                        waiting.append(path)
                elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                    yield os.path.join(folder, entry.name)


def is_below(path: bytes) -> bool:
    """Whether a path from an index stays in the working tree and out of ``.git``.

    git checks that when it adds to an index, not when it lists one that somebody else wrote.
    """
    return _NEVER_BELOW.isdisjoint(path.lower().split(b"/"))


def folders_above(paths: Iterable[bytes]) -> set[bytes]:
    """Return every directory that leads to one of the paths; where there is any, the top too, which is ``b""``."""
    found: set[bytes] = set()
    above = {path.rpartition(b"/")[0] for path in paths}
    while above:
        found |= above
        above = {path.rpartition(b"/")[0] for path in above} - found
    return found


class Folders:
    """Looks at paths below one directory without following a symlink anywhere. Answers are kept: short-lived."""

    def __init__(self, directory: Path) -> None:
        self._root = os.fsencode(directory)
        self._real: dict[bytes, bool] = {b"": True}

    def is_real(self, folder: bytes) -> bool:
        """Whether ``folder`` and all above it are directories, not symlinks to such."""
        if folder not in self._real:
            parent = os.path.dirname(folder)
            # Somebody's index may hold an absolute path, which has no top here.
            self._real[folder] = parent != folder and self.is_real(parent) and stat.S_ISDIR(self._lstat(folder))
        return self._real[folder]

    def mode(self, path: bytes) -> int:
        """Return ``st_mode`` of ``path`` itself; 0 where it is not there, or only by way of a symlink."""
        return self._lstat(path) if self.is_real(os.path.dirname(path)) else 0

    def obstacle(self, path: bytes) -> bytes:
        """Return the first part of ``path`` that is there and is no real directory; empty if none."""
        parent = os.path.dirname(path)
        if parent and not self.is_real(parent):
            return self.obstacle(parent)
        mode = self._lstat(path)
        return path if mode and not stat.S_ISDIR(mode) else b""

    def _lstat(self, path: bytes) -> int:
        try:
            return os.lstat(os.path.join(self._root, path)).st_mode
        except OSError:
            return 0


def shown(path: bytes) -> str:
    """Return a path as one line of plain text, whatever bytes it holds."""
    text = path.decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
