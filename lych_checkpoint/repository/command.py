"""Run git: fixed arguments, an environment that nobody else shapes, bytes in and out."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# Where git is missing GitPython's import would fail with its own text; like this the first command is refused.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from git import Git
from git.exc import GitCommandNotFound

from lych_checkpoint.errors import Refused
from lych_checkpoint.process import ended_within

#: Of no consequence: git only wants somebody to name in a reflog and in a captured commit.
_WHO = "lych_checkpoint"
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1",
    "GIT_GRAFT_FILE": os.devnull, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none", "GIT_EDITOR": "false",
    "GIT_ASKPASS": "false", "GIT_PAGER": "cat",
    "GIT_AUTHOR_NAME": _WHO, "GIT_AUTHOR_EMAIL": f"{_WHO}@localhost",
    "GIT_COMMITTER_NAME": _WHO, "GIT_COMMITTER_EMAIL": f"{_WHO}@localhost",
}
#: Variables that mean nothing to git, or only where it fetches through HTTP. Taking one away costs a process.
_IDLE = ("GIT_PYTHON_", "GIT_SSL_")
#: Outranks every configuration file. Most of it matters only in a repository's own git directory.
_CONFIGURATION = {
    "core.hooksPath": os.devnull, "core.fsmonitor": "false", "core.untrackedCache": "false",
    "core.splitIndex": "false", "core.attributesFile": os.devnull, "core.excludesFile": os.devnull,
    "core.sshCommand": "false", "core.alternateRefsCommand": "true", "core.quotePath": "false",
    # A thread for each 500 files: where two gits of ours have a processor each, theirs stand in each other's way.
    "core.preloadIndex": "true" if (os.cpu_count() or 1) > 2 else "false",
    "submodule.recurse": "false", "fetch.recurseSubmodules": "false",
    "protocol.allow": "never", "gc.auto": "0", "maintenance.auto": "false", "advice.detachedHead": "false",
    "advice.graftFileDeprecated": "false",
}


#: The first release of each line that has the mends of July 2025; every later line has them.
_MENDED = {(2, 43): 7, (2, 44): 4, (2, 45): 4, (2, 46): 4, (2, 47): 3, (2, 48): 2, (2, 49): 1, (2, 50): 1}


@dataclass(frozen=True, slots=True)
class Done:
    """How git ended: exit status, stdout as it came, stderr as text."""

    status: int
    out: bytes
    err: str


def run(
    git_dir: Path,
    *arguments: str,
    work_tree: Path | None = None,
    environment: Mapping[str, str] | None = None,
    configuration: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    accept: tuple[int, ...] = (0,),
    timeout_s: float = 120,
    inherit: int | None = None,
) -> Done:
    """Run one git command with ``GIT_DIR`` given, so that git searches no directory and asks for no owner.

    Args:
        git_dir: the git directory.
        arguments: the command and its arguments.
        work_tree: the working tree; also the working directory.
        environment: added to ours.
        configuration: added to ours.
        stdin: what git reads.
        accept: exit statuses that are answers.
        timeout_s: git is killed after this.
        inherit: a descriptor that git keeps open as long as it lives (a lock that outlives us).

    Raises:
        Refused: git is missing, was too slow (``git-slow``), or ended with another status (``git-failed``).
    """
    where = str(work_tree or git_dir)
    place = {"GIT_DIR": str(git_dir)} | ({"GIT_WORK_TREE": str(work_tree)} if work_tree else {})
    ours = _ENVIRONMENT | place | _configured({**_CONFIGURATION, **(configuration or {})}) | dict(environment or {})
    # GitPython adds to the process's environment and cannot take from it; a caller's GIT_INDEX_FILE must not count.
    strays = [name for name in os.environ
              if name.startswith("GIT_") and not name.startswith(_IDLE) and name not in ours]
    prefix = ["env", *(part for name in strays for part in ("-u", name))] if strays else []
    # The working directory goes to git itself: GitPython would expand `~` and `$` in it.
    argv = [*prefix, "git", "--no-pager", "-C", where, *arguments]
    extra: dict[str, Any] = {} if inherit is None else {"pass_fds": (inherit,)}
    source = _memory_file(stdin) if stdin is not None else None
    try:
        process: Any = Git(os.sep).execute(argv, istream=source, as_process=True, shell=False, env=ours, **extra)
        out, err, in_time = _ended(process, timeout_s)
    except GitCommandNotFound as error:
        raise Refused("the program git was not found", where, "install git", "program-missing") from error
    finally:
        if source is not None:
            source.close()
    if not in_time:
        raise Refused(f"git {arguments[0]} did not end within {timeout_s:g} s", where, "", "git-slow")
    status = process.returncode
    if status not in accept:
        lines = [line for line in err.splitlines() if line.strip()] or [f"exit {status}"]
        raise Refused(f"git {arguments[0]} failed: {lines[-1].strip()}", where, "", "git-failed")
    return Done(status, out, err)


def git_version() -> str:
    """Return git's version as it tells it, such as ``2.39.5``.

    Raises:
        Refused: git is missing.
    """
    return run(Path(os.sep), "version").out.decode(errors="replace").removeprefix("git version ").strip()


def is_old(version: str) -> bool:
    """Whether a version of git is older than the mends of its line for CVE-2025-48384.

    Nothing that it is about is run here, yet whoever uses git in the same repositories runs it.
    """
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    line = tuple(numbers[:2])
    return line < min(_MENDED) or (line in _MENDED and (numbers[2] if len(numbers) > 2 else 0) < _MENDED[line])


def _ended(process: Any, timeout_s: float) -> tuple[bytes, str, bool]:
    """Return what the process said, and whether it ended by itself in time; else it is killed, and its children.

    Not by GitPython: before 3.2 that asks `ps` for the children, and where there is none kills nobody.
    """
    found = ended_within(process, timeout_s)
    late = found is None
    if found is None:
        with suppress(OSError):  # the kernel may not tell, or the process has just ended
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        process.kill()
        found = process.communicate()
    out, err = found
    return out, err.decode(errors="replace"), not (late and process.returncode == -signal.SIGKILL)


def _configured(configuration: Mapping[str, str]) -> dict[str, str]:
    pairs = {"GIT_CONFIG_COUNT": str(len(configuration))}
    for number, (key, value) in enumerate(configuration.items()):
        pairs[f"GIT_CONFIG_KEY_{number}"], pairs[f"GIT_CONFIG_VALUE_{number}"] = key, value
    return pairs


def _memory_file(data: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("lych-git"), "w+b")
    file.write(data)
    file.flush()
    file.seek(0)
    return file


def quoted(path: Path) -> str:
    """Return a path as ``GIT_ALTERNATE_OBJECT_DIRECTORIES`` takes one, whose separator may be in it."""
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
