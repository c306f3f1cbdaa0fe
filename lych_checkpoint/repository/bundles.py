"""Put a commit with its history into one file, and bring it back from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.command import run
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.lens import Lens, opened, prepare
from lych_checkpoint.repository.place import Repository

#: A bundle cannot say where history was cut off; a shallow clone's boundary travels beside it.
SHALLOW_SUFFIX = ".shallow"
_TIMEOUT_S = 1800
#: Slips of old authors' clients. Refusing them would make an honest history impossible to restore.
_FORGIVEN = (
    "badDate", "badDateOverflow", "badEmail", "badName", "badTimezone", "missingEmail", "missingNameBeforeEmail",
    "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "zeroPaddedFilemode", "zeroPaddedDate",
)


def write(
    repository: Repository, configuration: Configuration, ref: str, tip: str, file: Path, *,
    alternates: Sequence[Path] = (),
) -> None:
    """Write all of ``tip`` into ``file``, under the name ``ref``.

    Raises:
        Refused: an object is missing (``bundle-failed``); no file is left.
    """
    with opened(repository, configuration, tip, alternates=alternates) as lens:
        (lens.git_dir / ref).parent.mkdir(parents=True, exist_ok=True)
        (lens.git_dir / ref).write_text(tip + "\n")
        try:
            lens.git("bundle", "create", "-q", str(file), ref, timeout_s=_TIMEOUT_S)
        except Refused as error:
            file.unlink(missing_ok=True)
            raise Refused(error.what, error.where, "git fsck", "bundle-failed") from error
    file.chmod(0o600)
    if lens.shallow is not None:
        boundary = file.with_name(file.name + SHALLOW_SUFFIX)
        shutil.copyfile(lens.shallow, boundary)
        boundary.chmod(0o600)


def tip(file: Path) -> str:
    """Return the one commit that a bundle brings; empty where the file is none.

    Read by hand: what git prints about a bundle needs a repository of the right object format to run in.
    """
    try:
        with file.open("rb") as stream:
            for line in stream:
                if line == b"\n":
                    break
                if line[:1] not in b"#@-":
                    return line.split(b" ", 1)[0].decode("ascii", "replace")
    except OSError:
        return ""
    return ""


def fetch(repository: Repository, object_format: str, file: Path) -> None:
    """Bring everything in a bundle into the repository's object store, checked object by object. Moves no ref.

    Raises:
        Refused: the bundle is damaged, or does not hold all that it names (``bundle-broken``).
    """
    with tempfile.TemporaryDirectory(prefix="lych-fetch-") as name:
        _fetch(Path(name), object_format, file, repository.objects, str(repository.directory))


def doubt(object_format: str, file: Path) -> str:
    """Bring a bundle into an empty place beside it, as a restore of a lost repository would; say what is wrong.

    `git bundle verify` answers for no byte of it: it passes one with a flipped bit.
    """
    with tempfile.TemporaryDirectory(prefix="lych-trial-", dir=file.parent) as name:
        try:
            _fetch(Path(name), object_format, file, Path(name) / "objects", file.name)
        except Refused as error:
            return error.what
    return ""


def _fetch(place: Path, object_format: str, file: Path, objects: Path, where: str) -> None:
    boundary = file.with_name(file.name + SHALLOW_SUFFIX)
    prepare(place, object_format=object_format, head="ref: refs/heads/none")
    shallow = Path(shutil.copyfile(boundary, place / "boundary")) if boundary.is_file() else None
    lens = Lens(
        git_dir=place, work_tree=place, objects=objects, index=place / "index", shallow=shallow,
        configuration={"fetch.fsckObjects": "true", "fetch.unpackLimit": "1",
                       **{f"fetch.fsck.{name}": "ignore" for name in _FORGIVEN}},
    )
    try:
        lens.git("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", str(file),
                 "+refs/*:refs/fetched/*", protocol="file", timeout_s=_TIMEOUT_S)
    except Refused as error:
        raise Refused(f"{file.name}: {error.what}", where,
                      "lych-checkpoint verify, then restore another checkpoint", "bundle-broken") from error


def make_repository(
    directory: Path, configuration: Configuration, file: Path, commit: str, branch: str,
) -> Repository:
    """Make a repository without working files from a bundle: HEAD is ``branch`` if it has a name, else detached."""
    directory.mkdir(parents=True, exist_ok=True)
    run(directory / ".git", "init", "-q", "--template=", f"--object-format={configuration.object_format}",
        "-b", branch or "main", work_tree=directory)
    repository = Repository.at(directory)
    fetch(repository, configuration.object_format, file)
    boundary = file.with_name(file.name + SHALLOW_SUFFIX)
    if boundary.is_file():
        shutil.copyfile(boundary, repository.git_dir / "shallow")
    if configuration.remote:
        run(repository.git_dir, "config", "remote.origin.url", configuration.remote)
        run(repository.git_dir, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    target = f"refs/heads/{branch}" if branch else "HEAD"
    run(repository.git_dir, "update-ref", "--no-deref", target, commit)
    return repository
