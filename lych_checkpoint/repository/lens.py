"""A git directory of our own through which a repository's working tree and objects are seen.

The repository's configuration, hooks and attribute drivers are not in it, so nothing that they name can run: not
fsmonitor at a status, not a filter when a racily clean file is compared, not a hook at a checkout. Attributes that
git itself acts on (line ends, ident) still count, unless the lens is raw: then bytes are bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lych_checkpoint.repository.command import Done, quoted, run
from lych_checkpoint.repository.configuration import Configuration
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.repository.scratch import scratch

_RAW = b"* -text -filter -ident -working-tree-encoding\n"
_SPECIAL = re.compile(rb"([\\*?\[\]!# ])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """One view of a working tree. ``objects`` is written to and read, ``alternates`` are read."""

    git_dir: Path
    work_tree: Path
    objects: Path
    index: Path
    alternates: tuple[Path, ...] = ()
    configuration: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    leave_out: tuple[bytes, ...] = ()
    shallow: Path | None = None
    inherit: int | None = None

    def git(
        self, *arguments: str, stdin: bytes | None = None, accept: tuple[int, ...] = (0,), timeout_s: float = 120,
        protocol: str = "none", index: Path | None = None,
    ) -> Done:
        """Run git through this lens; see `command.run`. ``index`` replaces the lens's own."""
        environment = {
            "GIT_OBJECT_DIRECTORY": str(self.objects), "GIT_INDEX_FILE": str(index or self.index),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(quoted(path) for path in self.alternates),
            "GIT_ALLOW_PROTOCOL": protocol, **self.environment,
        }
        if self.shallow is not None:
            environment["GIT_SHALLOW_FILE"] = str(self.shallow)
        return run(self.git_dir, *arguments, work_tree=self.work_tree, environment=environment, stdin=stdin,
                   configuration=self.configuration, accept=accept, timeout_s=timeout_s, inherit=self.inherit)

    def left_out(self, path: bytes) -> bool:
        """Whether ``path``, relative to the working tree, is one that is not looked at, or lies below one."""
        return any(path.rstrip(b"/") == one or path.startswith(one + b"/") for one in self.leave_out)


def prepare(
    git_dir: Path, *, object_format: str, head: str, raw: bool = False, attributes: bytes = b"",
    leave_out: Sequence[bytes] = (), shared_indexes: Sequence[Path] = (), borrowing: bool = False,
) -> None:
    """Write a minimal git directory; writing over an earlier one is fine.

    Its own ``objects`` is made unless ``borrowing``: then every command names another directory.
    """
    patterns = (b"/" + _SPECIAL.sub(rb"\\\1", path) for path in leave_out if b"\n" not in path)
    info = {"attributes": _RAW if raw else attributes, "exclude": b"".join(pattern + b"\n" for pattern in patterns)}
    # On some file systems a directory is dear, and a scan makes a lens for every repository.
    folders = ["refs", *(["objects"] if not borrowing else []), *(["info"] if any(info.values()) else [])]
    for folder in folders:
        (git_dir / folder).mkdir(parents=True, exist_ok=True)
    extension = f"[extensions]\n\tobjectformat = {object_format}\n" if object_format != "sha1" else ""
    version = 1 if extension else 0
    config = f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n{extension}"
    _write(git_dir / "config", config.encode())
    _write(git_dir / "HEAD", head.encode() + b"\n")
    for name, text in info.items():
        if "info" in folders:
            _write(git_dir / "info" / name, text)
    for shared in shared_indexes:
        link = git_dir / shared.name
        if not link.exists():
            link.symlink_to(shared)


@contextmanager
def opened(
    repository: Repository,
    configuration: Configuration,
    head: str,
    *,
    fresh: bool = True,
    raw: bool = False,
    leave_out: Sequence[bytes] = (),
    alternates: Sequence[Path] = (),
    inherit: int | None = None,
    within: Path | None = None,
) -> Iterator[Lens]:
    """Open a lens for the body of the `with`.

    Args:
        repository: whose working tree and objects are seen.
        configuration: its line-end settings and object format.
        head: what counts as HEAD, a commit.
        fresh: an empty index of the lens's own; else the repository's, which is only read.
        raw: bytes are bytes, whatever attributes say.
        leave_out: paths relative to the working tree that are not looked at.
        alternates: further object directories to read.
        inherit: see `command.run`.
        within: where the lens is made, see `scratch`.
    """
    with scratch(within) as git_dir:
        prepare(
            git_dir, object_format=configuration.object_format, head=head, raw=raw, leave_out=leave_out,
            attributes=repository.attributes(), borrowing=True,
            shared_indexes=tuple(repository.git_dir.glob("sharedindex.*")),
        )
        shallow, excluded = repository.common / "shallow", repository.common / "info" / "exclude"
        yield Lens(
            git_dir=git_dir, work_tree=repository.directory, objects=repository.objects,
            index=git_dir / "index" if fresh else repository.index, alternates=tuple(alternates),
            configuration={**({} if raw else configuration.conversions),
                           "core.excludesFile": str(excluded) if excluded.is_file() else os.devnull},
            leave_out=tuple(leave_out), shallow=shallow if shallow.is_file() else None, inherit=inherit,
        )


def inside(directory: Path, paths: Sequence[Path]) -> tuple[bytes, ...]:
    """Return those of the absolute ``paths`` that lie below ``directory``, relative to it."""
    # By strings: each repository is compared with each other one, and with paths hundreds of them would take seconds.
    above = os.path.join(directory, "")
    return tuple(os.fsencode(path[len(above):]) for path in map(str, paths) if path.startswith(above))


def _write(path: Path, text: bytes) -> None:
    """Write a file, unless that is what it holds: somebody may read it, and must never see half of it."""
    if not path.is_file() or path.read_bytes() != text:
        path.write_bytes(text)
