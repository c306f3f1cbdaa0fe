"""Put a commit with its history, or what that adds to others, into one file, and bring it back from there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.command import run
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import Lens, opened, prepare
from lych_checkpoint.repository.ownership import refuse_links
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.repository.scratch import scratch

_TIMEOUT_S = 1800
#: Slips of old authors' clients. Refusing them would make an honest history impossible to restore.
_FORGIVEN = (
    "badDate", "badDateOverflow", "badEmail", "badName", "badTimezone", "missingEmail", "missingNameBeforeEmail",
    "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "zeroPaddedFilemode", "zeroPaddedDate",
)


def write(
    repository: Repository, configuration: Configuration, ref: str, tip: str, file: Path, *,
    alternates: Sequence[Path] = (), without: Sequence[str] = (),
) -> None:
    """Write all of ``tip`` into ``file``, under the name ``ref``.

    Args:
        repository: where it is.
        configuration: that repository's.
        ref: what git calls it in the file.
        tip: a commit.
        file: what is made.
        alternates: further object directories to read.
        without: commits that the reader has with all their history; those that are not here do not count.

    Raises:
        Refused: an object is missing (``bundle-failed``); no file is left.
    """
    known = ["--ignore-missing", *(f"^{commit}" for commit in without)] if without else []
    with opened(repository, configuration, tip, alternates=alternates) as lens:
        (lens.git_dir / ref).parent.mkdir(parents=True, exist_ok=True)
        (lens.git_dir / ref).write_text(tip + "\n")
        try:
            lens.git("bundle", "create", "-q", str(file), ref, *known, timeout_s=_TIMEOUT_S)
        except Refused as error:
            file.unlink(missing_ok=True)
            if os.strerror(errno.ENOSPC) in error.what:
                raise Refused("there is no room left", str(file), "make room, then try again", "no-room") from error
            raise Refused(error.what, error.where, "git fsck", "bundle-failed") from error
    file.chmod(0o600)
    if lens.shallow is not None:
        boundary = boundary_of(file)
        shutil.copyfile(lens.shallow, boundary)
        boundary.chmod(0o600)


def boundary_of(file: Path) -> Path:
    """Where a shallow clone's boundary travels: a bundle cannot say where history was cut off."""
    return file.with_name(f"{file.name}.shallow")


@dataclass(frozen=True, slots=True)
class Header:
    """What a bundle says of itself: the one commit that it brings, and whether it builds on none of another's."""

    tip: str
    whole: bool


def header(file: Path) -> Header:
    """Read a bundle's head; an empty tip where the file is none.

    Read by hand: what git prints about a bundle needs a repository of the right object format to run in.
    """
    whole = True
    try:
        with file.open("rb") as stream:
            for line in stream:
                if line == b"\n":
                    break
                if line[:1] == b"-":
                    whole = False
                elif line[:1] not in b"#@":
                    return Header(line.split(b" ", 1)[0].decode("ascii", "replace"), whole)
    except OSError:
        pass
    return Header("", whole)


def fetch(repository: Repository, object_format: str, files: Sequence[Path]) -> None:
    """Bring everything in bundles into the repository's object store, checked object by object. Moves no ref.

    Args:
        repository: where to.
        object_format: of both.
        files: a whole bundle, then those that each build on the ones before.

    Raises:
        Refused: a bundle is damaged, or does not hold all that it names (``bundle-broken``).
    """
    refuse_links(repository)
    with scratch() as place:
        lens = _fetch(place, object_format, files, repository.objects, str(repository.directory))
        boundary = boundary_of(files[0])
        if boundary.is_file():
            _cut_off(repository, replace(lens, shallow=None), boundary.read_text().split())


def _cut_off(repository: Repository, lens: Lens, commits: Sequence[str]) -> None:
    """Tell git that history ends at ``commits``, as far as it does: it may be there from elsewhere."""
    shallow = repository.common / "shallow"
    known = set(shallow.read_text().split()) if shallow.is_file() else set()
    ends = {commit for commit in commits if lens.git("rev-list", "-n2", commit, "--", accept=(0, 128)).status}
    if ends - known:
        temporary = repository.common / "lych-shallow"
        temporary.unlink(missing_ok=True)
        temporary.write_text("".join(f"{commit}\n" for commit in sorted(known | ends)))
        temporary.rename(shallow)


def doubt(object_format: str, files: Sequence[Path]) -> str:
    """Bring bundles into an empty place beside them, as a restore of a lost repository would; say what is wrong.

    `git bundle verify` answers for no byte of one: it passes a flipped bit. A fetch hashes every object, and refuses
    a commit of which any tree or file is missing.
    """
    with scratch(files[0].parent) as place:
        try:
            _fetch(place, object_format, files, place / "objects", files[-1].name)
        except Refused as error:
            return error.what
    return ""


def _fetch(place: Path, object_format: str, files: Sequence[Path], objects: Path, where: str) -> Lens:
    boundary = boundary_of(files[0])
    prepare(place, object_format=object_format, head="ref: refs/heads/none")
    shallow = Path(shutil.copyfile(boundary, place / "boundary")) if boundary.is_file() else None
    lens = Lens(
        git_dir=place, work_tree=place, objects=objects, index=place / "index", shallow=shallow,
        configuration={"fetch.fsckObjects": "true", "fetch.unpackLimit": "1",
                       **{f"fetch.fsck.{name}": "ignore" for name in _FORGIVEN}},
    )
    for file in files:
        try:
            lens.git("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", str(file),
                     "+refs/*:refs/fetched/*", protocol="file", timeout_s=_TIMEOUT_S)
        except Refused as error:
            raise Refused(f"{file.name}: {error.what}", where,
                          "lych-checkpoint verify, then restore another checkpoint", "bundle-broken") from error
    return lens


def make_repository(
    directory: Path, configuration: Configuration, files: Sequence[Path], commit: str, branch: str,
) -> Repository:
    """Make a repository without working files from ``files``, as `fetch` takes them.

    HEAD is ``branch`` if it has a name, else detached.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run(directory / ".git", "init", "-q", "--template=", f"--object-format={configuration.object_format}",
        "-b", branch or "main", work_tree=directory)
    repository = Repository.at(directory)
    fetch(repository, configuration.object_format, files)
    if configuration.remote:
        run(repository.git_dir, "config", "remote.origin.url", configuration.remote)
        run(repository.git_dir, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    target = f"refs/heads/{branch}" if branch else "HEAD"
    run(repository.git_dir, "update-ref", "--no-deref", target, commit)
    return repository
