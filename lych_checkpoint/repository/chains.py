"""The bundles of one repository in a checkpoint: a whole one, and after it what each later checkpoint added.

``<name>.bundle`` holds all history, ``<name>.1.bundle`` and those that follow build on the ones before. A checkpoint
holds every file that it needs: those of the checkpoint before are linked into it. So they take their room once, each
checkpoint lists and digests all of its own, and one that is removed takes nothing from another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import bundles
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.place import Repository

logger = logging.getLogger(__name__)

#: So many files at most; then a whole one begins anew, with nothing in it that only older checkpoints need.
LONGEST = 8


def reaching(folder: Path, name: str, commit: str) -> list[Path]:
    """Return the bundles in ``folder`` that bring ``commit``, in the order to fetch; none where they do not."""
    files = list(_files(folder, name))
    tips = [bundles.header(file).tip for file in files]
    return files[:tips.index(commit) + 1] if commit in tips else []


def write(
    repository: Repository, configuration: Configuration, ref: str, tip: str, into: Path, name: str, *,
    before: Path | None = None, alternates: Sequence[Path] = (),
) -> str:
    """Write what brings ``tip`` back into ``into``, and try it in an empty place.

    Args:
        repository: where it is.
        configuration: that repository's.
        ref: what git calls it in a bundle.
        tip: a commit.
        into: directory of the checkpoint's bundles.
        name: of the repository, safe in a file name.
        before: the directory of another checkpoint's bundles. What is in them is not written again, unless they are
            at their `LONGEST`, damaged, or out of reach of a link.
        alternates: further object directories to read.

    Returns:
        Why the repository could not be made anew from it; empty if it could.

    Raises:
        Refused: an object is missing (``bundle-failed``).
    """
    if before is not None:
        try:
            if _build_on(list(_files(before, name)), repository, configuration, ref, tip, into, name, alternates):
                return ""
        except (Refused, OSError) as error:
            logger.info("%s: a whole bundle is written: %s", name, error, extra={"event": "bundle.whole"})
        for file in _files(into, name):
            file.unlink()
    whole = into / f"{name}.bundle"
    bundles.write(repository, configuration, ref, tip, whole, alternates=alternates)
    return bundles.doubt(configuration.object_format, [whole])


def _build_on(
    known: Sequence[Path], repository: Repository, configuration: Configuration, ref: str, tip: str, into: Path,
    name: str, alternates: Sequence[Path],
) -> bool:
    """Link what is known and add what is new. False, and a rest to remove, where that brings nothing back."""
    if not known or (repository.common / "shallow").is_file() or bundles.boundary_of(known[0]).is_file():
        return False
    needed = reaching(known[0].parent, name, tip)
    if not needed and len(known) >= LONGEST:
        return False
    files = [into / file.name for file in needed or known]
    for source, file in zip(needed or known, files, strict=True):
        os.link(source, file)
    if not needed:
        added = into / f"{name}.{len(known)}.bundle"
        bundles.write(repository, configuration, ref, tip, added, alternates=alternates,
                      without=[bundles.header(file).tip for file in files])
        if bundles.header(added).whole:
            return False
        files.append(added)
    doubt = bundles.doubt(configuration.object_format, files)
    if doubt:
        logger.warning("The bundles before cannot be built on: %s", doubt, extra={"event": "bundle.doubt"})
    return not doubt


def _files(folder: Path, name: str) -> Iterator[Path]:
    for number in range(LONGEST):
        file = folder / (f"{name}.{number}.bundle" if number else f"{name}.bundle")
        if not file.is_file():
            return
        yield file
