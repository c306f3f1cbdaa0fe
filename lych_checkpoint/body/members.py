"""Which repositories are the body: what the settings list, compared with what is on disk."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from lych_checkpoint.body.area import PLACE
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import RepoPin
from lych_checkpoint.repository.parts import looks_bare
from lych_checkpoint.repository.place import Repository

Role = Literal["core", "extension"]
In = TypeVar("In")
Out = TypeVar("Out")
#: git works in a process of its own; a third thread gains nothing on two cores and little on more.
_THREADS = 2
_MAGIC = frozenset("*?[")
_SETTING = "LYCH_EXTENSIONS"


@dataclass(frozen=True, slots=True)
class Member:
    """One repository of the body: posix path below the root (``.`` for the root), role, absolute directory."""

    path: str
    role: Role
    directory: Path

    @property
    def root(self) -> Path:
        """The root that the path is relative to."""
        return self.directory if self.path == "." else self.directory.parents[len(PurePosixPath(self.path).parts) - 1]


def find(root: Path, core: str, extensions: Sequence[str]) -> tuple[Member, ...]:
    """Return what holds a ``.git``, sound or broken, sorted by path. What is listed and missing is left out.

    Raises:
        Refused: a path or pattern leads out of the root (``leaves-root``), or a path is not UTF-8 (``odd-name``).
    """
    root = root.absolute()
    left_out = [pattern[1:] for pattern in extensions if pattern.startswith("!")]
    roles: dict[str, Role] = {}
    for path in _listed(root, [one for one in extensions if not one.startswith("!")]):
        if not any(path == pattern or fnmatch.fnmatchcase(path, pattern) for pattern in left_out):
            roles[path] = "extension"
    roles[_normal(core, "LYCH_CORE")] = "core"
    members = []
    for path, role in sorted(roles.items(), key=lambda item: item[0].encode(errors="surrogateescape")):
        directory = root if path == "." else root / path
        if (directory / ".git").exists() or (directory / ".git").is_symlink():
            if not directory.resolve().is_relative_to(root.resolve()):
                raise Refused(f"leads out of the root to {directory.resolve()}", path,
                              "move the repository below LYCH_ROOT", "leaves-root")
            if path != path.encode(errors="ignore").decode():
                raise Refused("its name is not UTF-8: no lock could hold it", ascii(path), "rename it", "odd-name")
            members.append(Member(path, role, directory))
    return tuple(members)


def strays(root: Path, core: str, extensions: Sequence[str]) -> list[str]:
    """Return the repositories up to two levels below the root that no setting names: neither taken nor left out.

    What lies inside a member is looked at when it is scanned.
    """
    root = root.absolute()
    known = [member.path for member in find(root, core, extensions)]
    left_out = [pattern[1:] for pattern in extensions if pattern.startswith("!")]
    found = []
    for directory in (path.parent for depth in ("*/.git", "*/*/.git") for path in root.glob(depth)):
        path = directory.relative_to(root)
        above = {one.as_posix() for one in (path, *path.parents)}
        if PLACE not in path.parts and not above & set(known) and \
                not any(fnmatch.fnmatchcase(one, pattern) for one in above for pattern in left_out):
            found.append(os.fsencode(path).decode(errors="backslashreplace"))
    return sorted(found)


def listed_in(root: Path, pins: Iterable[RepoPin]) -> tuple[Member, ...]:
    """Return the members that a lock names, whether or not they are on disk."""
    return tuple(Member(pin.path, "core" if pin.role == "core" else "extension", root / pin.path) for pin in pins)


def discover(root: Path, core: str, extensions: Sequence[str]) -> tuple[Member, ...]:
    """Return the body's repositories, each sound as far as that shows without running git.

    Args:
        root: LYCH_ROOT.
        core: path of the core below it, ``.`` for the root itself.
        extensions: paths or globs below it; a leading ``!`` leaves out. A glob takes what holds a ``.git``.

    Raises:
        Refused: by name: ``no-repositories``, ``no-repository`` (listed and not there), ``bare``, ``broken``,
            ``unborn``, ``reftable``, ``leaves-root``, ``foreign-git-dir``, ``shared-repository`` (two paths, one
            repository).
    """
    root = root.absolute()
    members = find(root, core, extensions)
    if not members:
        core_directory = root / core
        if looks_bare(core_directory):
            Repository.at(core_directory)  # refuses it as what it is
        raise Refused("holds no repository of this federation", str(root),
                      "set LYCH_ROOT, LYCH_CORE and LYCH_EXTENSIONS", "no-repositories")
    known = {member.path for member in members}
    for path in [core, *(one for one in extensions if not one.startswith("!"))]:
        if not _MAGIC & set(path) and _normal(path, _SETTING) not in known:
            Repository.at(root / path)
    for path in _listed(root, [one for one in extensions if _MAGIC & set(one) and not one.startswith("!")]):
        if path not in known and looks_bare(root / path) and f"!{path}" not in extensions:
            Repository.at(root / path)
    seen: dict[Path, str] = {}
    for member in members:
        repository = Repository.at(member.directory)
        repository.head()
        other = seen.setdefault(repository.common, member.path)
        if other != member.path:
            raise Refused(f"is the same repository as {other}", member.path,
                          f"take one out of {_SETTING}, or clone it", "shared-repository")
    return members


def _listed(root: Path, patterns: Iterable[str]) -> list[str]:
    found = []
    for pattern in patterns:
        normal = _normal(pattern, _SETTING)
        if _MAGIC & set(pattern):
            below = (path.relative_to(root) for path in root.glob(normal) if path.is_dir())
            found += [path.as_posix() for path in below if path.parts[:1] != (PLACE,) and ".git" not in path.parts]
        else:
            found.append(normal)
    return found


def _normal(path: str, setting: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not path:
        raise Refused(f"is no path below the root: {path!r}", setting, f"set {setting}", "leaves-root")
    return pure.as_posix()


def each(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """Call ``function`` on every item, two at a time, and return the results in order; the first error is raised."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lych-body") as pool:
        return list(pool.map(function, items))
