"""What the object store knows: trees of commits, whether all of a commit is there, how two commits relate."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.command import Done, run
from lych_checkpoint.repository.lens import prepare
from lych_checkpoint.repository.place import Repository

Verdict = Literal["aligned", "ahead", "behind", "diverged", "unknown"]


class Reader:
    """Asks the object stores of several repositories through one bare git directory of our own."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def ask(
        self, repository: Repository, commit: str, *arguments: str, accept: tuple[int, ...] = (0,),
        alternates: Sequence[Path] = (),
    ) -> Done:
        """Run a command that only reads objects. ``commit`` tells the object format by its length."""
        object_format = "sha256" if len(commit) == 64 else "sha1"
        environment = {"GIT_OBJECT_DIRECTORY": str(repository.objects),
                       "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(str(path) for path in alternates)}
        shallow = repository.common / "shallow"
        if shallow.is_file():
            environment["GIT_SHALLOW_FILE"] = str(shallow)
        return run(self._place / object_format, *arguments, environment=environment, accept=accept)

    def tree(self, repository: Repository, commit: str) -> str:
        """Return the tree of a commit.

        Raises:
            Refused: it has no such commit (``broken``).
        """
        done = self.ask(repository, commit, "rev-parse", "--verify", "-q", f"{commit}^{{tree}}", accept=(0, 1, 128))
        if done.status:
            raise Refused(f"the repository is broken: the commit {commit[:12]} cannot be read",
                          str(repository.directory), "git fsck, or restore it", "broken")
        return done.out.decode().strip()

    def holds(self, repository: Repository, commit: str) -> bool:
        """Whether the commit and every tree and file of it are there; older commits are not looked at."""
        done = self.ask(repository, commit, "rev-list", "--objects", "--quiet", "--no-walk", commit,
                        accept=(0, 1, 128))
        return done.status == 0

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


@contextmanager
def reading() -> Iterator[Reader]:
    """Open a `Reader`; it may be used from several threads."""
    with tempfile.TemporaryDirectory(prefix="lych-reader-") as name:
        place = Path(name)
        for object_format in ("sha1", "sha256"):
            prepare(place / object_format, object_format=object_format, head="ref: refs/heads/none")
        yield Reader(place)
