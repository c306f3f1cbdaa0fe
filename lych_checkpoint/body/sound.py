"""Open a repository that may be in any state: restore must cope with what create may refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository import worktree
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.objects import Reader
from lych_checkpoint.repository.parts import is_inside
from lych_checkpoint.repository.place import Head, Repository

_NONE: Mapping[Path, Path] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sound:
    """A repository that we can switch in place, and what is checked out in it."""

    repository: Repository
    configuration: Configuration
    head: Head
    tree: str


def homes(root: Path, directories: Iterable[Path]) -> dict[Path, Path]:
    """Return for each shared git directory the working tree below ``root`` that it belongs to.

    Two paths may lead to one repository, by a symlink or by what a ``.git`` names: it must be switched once, as the
    one in whose directory it lies.
    """
    found: dict[Path, Path] = {}
    for directory in directories:
        try:
            common = Repository.at(directory).common
        except Refused:
            continue
        real = root.resolve() / directory.relative_to(root)
        if directory.resolve() == real and is_inside(directory, common):
            found[common] = directory
        else:
            found.setdefault(common, directory)
    return found


def open_sound(reader: Reader, directory: Path, known: Mapping[Path, Path] = _NONE) -> Sound | None:
    """Return the repository at ``directory``, or None if it is missing, broken, unborn, or of a kind we refuse.

    None means: it is never touched inside, only moved as a whole.

    Args:
        reader: reads its tree.
        directory: its working tree.
        known: from `homes`; one that is another's is not sound.
    """
    try:
        repository = Repository.at(directory)
        if known.get(repository.common, directory) != directory:
            return None
        worktree.refuse_endless(directory, directory.name)
        head = repository.head()
        return Sound(repository, configurations.read(repository), head, reader.tree(repository, head.commit))
    except Refused:
        return None
