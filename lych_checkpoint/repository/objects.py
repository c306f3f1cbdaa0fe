"""What the object store knows: trees of commits, whether all of a commit is there, how two commits relate."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lych_checkpoint.errors import Refused
from lych_checkpoint.records import digest
from lych_checkpoint.repository.command import Done, quoted, run
from lych_checkpoint.repository.lens import prepare
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.repository.scratch import scratch

Verdict = Literal["aligned", "ahead", "behind", "diverged", "unknown"]
#: Files that pin what a repository's code depends on.
_LOCKFILE = re.compile(
    rb"(?:uv|poetry|pdm|Pipfile|pixi)\.lock|pylock(?:\.[^.]+)?\.toml|(?:requirements|constraints)[^/]*\.txt"
    rb"|conda-lock\.ya?ml")
#: Anyone may commit a `uv.lock` of many gigabytes, or thousands; what exceeds this together is not digested. A name
#: that no file system takes is none.
_MOST_BYTES, _MOST_LOCKFILES, _MOST_NAME_BYTES = 64 << 20, 1000, 255
_MOST_LETTERS = 100
#: What reads one object is done at once, unless that object is a pipe; what reads all of a commit is not.
_QUICK_S, _WHOLE_S = 20, 1800


class Reader:
    """Asks the object stores of several repositories through one bare git directory of our own."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def ask(
        self, repository: Repository, commit: str, *arguments: str, accept: tuple[int, ...] = (0,),
        alternates: Sequence[Path] = (), stdin: bytes | None = None, timeout_s: float = 120,
    ) -> Done:
        """Run a command that only reads objects. ``commit`` tells the object format by its length."""
        object_format = "sha256" if len(commit) == 64 else "sha1"
        environment = {"GIT_OBJECT_DIRECTORY": str(repository.objects),
                       "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(quoted(path) for path in alternates)}
        shallow = repository.common / "shallow"
        if shallow.is_file():
            environment["GIT_SHALLOW_FILE"] = str(shallow)
        return run(self._place / object_format, *arguments, environment=environment, accept=accept,
                   stdin=stdin, timeout_s=timeout_s)

    def tree(self, repository: Repository, commit: str) -> str:
        """Return the tree of a commit.

        Raises:
            Refused: it has no such commit (``broken``).
        """
        done = self.ask(repository, commit, "rev-parse", "--verify", "-q", f"{commit}^{{tree}}", accept=(0, 1, 128),
                        timeout_s=_QUICK_S)
        if done.status:
            raise Refused(f"the repository is broken: the commit {commit[:12]} cannot be read",
                          str(repository.directory), "git fsck, or restore it", "broken")
        return done.out.decode().strip()

    def lockfiles(
        self, repository: Repository, commit: str, alternates: Sequence[Path] = (),
    ) -> tuple[str, dict[str, str]]:
        """Return the tree of a commit, and ``sha256:…`` of each lockfile of its dependencies by path.

        Looked for at the top and in ``requirements/``, in the commit itself and never on disk.

        Raises:
            Refused: it has no such commit (``broken``).
        """
        top = self._objects(repository, commit, [f"{commit}^{{tree}}"], alternates)
        if not top or top[0].kind != "tree":
            raise Refused(f"the repository is broken: the commit {commit[:12]} cannot be read",
                          str(repository.directory), "git fsck, or restore it", "broken")
        try:
            names = [os.fsdecode(name) for name in _lockfiles_in(top[0])]
        except ValueError as error:
            raise Refused(f"the repository is broken: the tree of {commit[:12]} is none", str(repository.directory),
                          "git fsck, or restore it", "broken") from error
        if not names or len(names) > _MOST_LOCKFILES:  # so many pin nothing; some of them would look like all
            return top[0].name, {}
        listed = self.ask(repository, commit, "ls-tree", "-l", "-z", commit, "--", *names, alternates=alternates,
                          accept=(0, 128))
        blobs = dict(_small_files(listed.out))
        if len(blobs) > _MOST_LOCKFILES:
            return top[0].name, {}
        found = self._objects(repository, commit, sorted(set(blobs.values())), alternates)
        digests = {one.name: digest(one.data) for one in found}
        return top[0].name, {path: digests[blob] for path, blob in blobs.items() if blob in digests}

    def _objects(
        self, repository: Repository, commit: str, names: Sequence[str], alternates: Sequence[Path],
    ) -> list[_Object]:
        """Return what the names stand for, without those that are not there; a damaged one ends the list."""
        if not names:
            return []
        out = self.ask(repository, commit, "cat-file", "--batch", alternates=alternates, accept=(0, 128),
                       stdin="".join(f"{name}\n" for name in names).encode()).out
        found, position = [], 0
        while (end := out.find(b"\n", position)) >= 0:
            parts = out[position:end].decode(errors="replace").split(" ")
            position = end + 1
            if len(parts) == 3:  # else "... missing"
                size = int(parts[2])
                found.append(_Object(parts[0], parts[1], out[position:position + size]))
                position += size + 1
        return found

    def holds(self, repository: Repository, commit: str) -> bool:
        """Whether the commit and every tree and file of it are there; older commits are not looked at."""
        done = self.ask(repository, commit, "rev-list", "--objects", "--quiet", "--no-walk", commit,
                        accept=(0, 1, 128))
        return done.status == 0

    def reads(self, repository: Repository, commit: str) -> bool:
        """Like `holds`, with every byte read and hashed."""
        done = self.ask(repository, commit, "rev-list", "--verify-objects", "--quiet", "--no-walk", commit,
                        accept=(0, 1, 128), timeout_s=_WHOLE_S)
        # Of a large file that is damaged git only says so.
        return done.status == 0 and not any(line.startswith("error:") for line in done.err.splitlines())

    def has(self, repository: Repository, commit: str) -> bool:
        """Whether there is such a commit."""
        return self.ask(repository, commit, "cat-file", "-e", f"{commit}^{{commit}}", accept=(0, 1, 128)).status == 0

    def commits(self, repository: Repository, of: str, without: str, most: int) -> Commits:
        """Return the commits of ``of`` that ``without`` has not, the newest ``most`` of them named.

        Raises:
            Refused: history cannot be walked (``git-failed``).
        """
        span = (of, f"^{without}", "--")
        count = int(self.ask(repository, of, "rev-list", "--count", *span).out)
        out = self.ask(repository, of, "rev-list", f"--max-count={most}", "--format=%s", "--encoding=UTF-8",
                       *span).out if count else b""
        lines = out.decode(errors="backslashreplace").split("\n")[:-1]
        named = zip(lines[::2], lines[1::2], strict=True)  # "commit <id>", then the subject, which is one line
        return Commits(count, tuple((head.removeprefix("commit "), text[:_MOST_LETTERS]) for head, text in named))

    def relation(self, repository: Repository, disk: str, witness: str) -> Verdict:
        """Return how the commit on disk stands to the witness's. ``unknown``: history does not say."""
        done = self.ask(repository, disk, "rev-list", "--left-right", "--count", f"{disk}...{witness}", "--",
                        accept=(0, 1, 128))
        if done.status:
            return "unknown"
        ahead, behind = (int(count) for count in done.out.split()[:2])
        if ahead and behind:
            # Where history was cut off, two commits of one line look like strangers.
            return "unknown" if (repository.common / "shallow").is_file() else "diverged"
        return "ahead" if ahead else "behind" if behind else "aligned"


@dataclass(frozen=True, slots=True)
class Commits:
    """How many commits there are, and the newest of them as ``(id, subject)``. Anyone may have written a subject."""

    count: int
    named: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    kind: str
    data: bytes


def _lockfiles_in(tree: _Object) -> Iterator[bytes]:
    """Give what to look for below a top tree, as git writes trees: lockfiles, and ``requirements/``."""
    data, width, position = tree.data, len(tree.name) // 2, 0
    while position < len(data):
        end = data.index(b"\0", position)
        mode, _, name = data[position:end].partition(b" ")
        position = end + 1 + width
        if mode.startswith(b"100") and len(name) <= _MOST_NAME_BYTES and _LOCKFILE.fullmatch(name):
            yield name
        elif mode == b"40000" and name == b"requirements":
            yield b"requirements/"


def _small_files(listed: bytes) -> Iterator[tuple[str, str]]:
    """Give path and object of every plain lockfile that `ls-tree -l -z` lists, as long as all are not too large."""
    whole_bytes = 0
    for entry in listed.split(b"\0")[:-1]:
        facts, _, path = entry.partition(b"\t")
        mode, _, blob, size = facts.split()
        if mode.startswith(b"100") and (b"/" not in path or path.endswith(b".txt")) and size.isdigit() \
                and whole_bytes + int(size) <= _MOST_BYTES:
            whole_bytes += int(size)
            yield path.decode(errors="backslashreplace"), blob.decode()


@contextmanager
def reading() -> Iterator[Reader]:
    """Open a `Reader`; it may be used from several threads."""
    with scratch() as place:
        for object_format in ("sha1", "sha256"):
            prepare(place / object_format, object_format=object_format, head="ref: refs/heads/none")
        yield Reader(place)
