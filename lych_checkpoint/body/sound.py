"""Open a repository that may be in any state: restore must cope with what create may refuse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import configuration as configurations
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.objects import Reader
from lych_checkpoint.repository.place import Head, Repository


@dataclass(frozen=True, slots=True)
class Sound:
    """A repository that we can switch in place, and what is checked out in it."""

    repository: Repository
    configuration: Configuration
    head: Head
    tree: str


def open_sound(reader: Reader, directory: Path) -> Sound | None:
    """Return the repository at ``directory``, or None if it is missing, broken, unborn, or of a kind we refuse.

    None means: it is never touched inside, only moved as a whole.
    """
    try:
        repository = Repository.at(directory)
        head = repository.head()
        return Sound(repository, configurations.read(repository), head, reader.tree(repository, head.commit))
    except Refused:
        return None
