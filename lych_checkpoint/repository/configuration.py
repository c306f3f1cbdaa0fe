"""The few facts of a repository's configuration that we must know. Reading it runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.command import run
from lych_checkpoint.repository.parts import foreign, is_inside, plain_bytes
from lych_checkpoint.repository.place import Repository

_TIMEOUT_S = 15
_SCP = re.compile(r"(?:[^@/:\s]+@)?([^@/:\s]+):(?!//|:)(.+)")
#: A line that git and anybody read alike: `[section]`, `[section "sub"]`, `key = value` of printable ASCII without
#: quote, backslash or comment, a comment, nothing.
_LINE = re.compile(
    rb"""(?:\[(?P<section>[A-Za-z][A-Za-z0-9-]*)(?:[ ]"(?P<sub>[!#-\[\]-~ ]*)")?\]
    |(?P<key>[A-Za-z][A-Za-z0-9-]*)[ \t]*=[ \t]*(?P<value>[!$-:<-\[\]-~]+(?:[ ][!$-:<-\[\]-~]+)*)
    |[#;][^\0\r]*)?""", re.VERBOSE)
#: What git acts on before it lists anything.
_ACTED_ON = ("include.", "includeif.", "extensions.", "core.worktree")
_PLAIN_BYTES = 1 << 16
_CONVERSIONS = {"core.autocrlf": ("true", "false", "input"), "core.eol": ("lf", "crlf", "native")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What counts. ``conversions`` are git's own line-end settings, which a checkout must follow as git would."""

    object_format: str
    remote: str
    conversions: dict[str, str]


def read(repository: Repository) -> Configuration:
    """Read the configuration.

    Raises:
        Refused: it cannot be read (``broken``), or says something that we cannot capture, by name: ``bare``,
            ``foreign-work-tree``, ``foreign-git-dir``, ``sparse``, ``partial-clone``, ``reftable``.
    """
    values = _plain(repository)
    if values is None:
        values = _asked(repository)
    _refuse(values, repository)
    said = {key: values.get(key, "").lower() for key in _CONVERSIONS}
    conversions = {key: value for key, value in said.items() if value in _CONVERSIONS[key]}
    return Configuration(
        object_format=values.get("extensions.objectformat", "sha1").lower(),
        remote=without_secrets(values.get("remote.origin.url", "")), conversions=conversions,
    )


def _plain(repository: Repository) -> dict[str, str] | None:
    """Return what a file of nothing but plain lines says, as most are: a git for each repository would be dear.

    None: it has a quote, a comment behind a value, an include, an extension, or anything else that git alone reads.
    """
    try:
        data = plain_bytes(repository.common / "config", _PLAIN_BYTES)
    except OSError:
        return None
    values: dict[str, str] = {}
    section = ""
    for line in data.split(b"\n"):
        if not (found := _LINE.fullmatch(line.strip(b" \t"))):
            return None
        if found["section"]:
            section = found["section"].decode().lower() + "."
            if found["sub"] is not None:
                section += found["sub"].decode() + "."
        elif found["key"]:
            key = section + found["key"].decode().lower()
            if not section or (key in values and key.startswith("core.")):  # git judges each, not the last one alone
                return None
            values[key] = found["value"].decode()
    plain = values.get("core.repositoryformatversion") == "0" and values.get("core.bare", "true") in ("true", "false")
    return values if plain and not any(key.startswith(_ACTED_ON) for key in values) else None


def _asked(repository: Repository) -> dict[str, str]:
    """Return what git says, by key."""
    try:
        out = run(repository.git_dir, "config", "-z", "--list", "--includes", timeout_s=_TIMEOUT_S).out
    except Refused as error:
        raise Refused(f"its configuration cannot be read: {error.what}", str(repository.directory),
                      "git config --list", "broken") from error
    values: dict[str, str] = {}
    for record in out.split(b"\0")[:-1]:
        key, _, value = record.partition(b"\n")
        values[key.decode(errors="replace")] = value.decode(errors="replace")
    return values


def _refuse(values: dict[str, str], repository: Repository) -> None:
    where = str(repository.directory)
    if _is_true(values.get("core.bare", "")):
        raise Refused("is a bare repository: it has no working tree to save", where,
                      "git config core.bare false, or name another clone", "bare")
    work_tree = values.get("core.worktree")
    if work_tree and (repository.git_dir / work_tree).resolve() != repository.directory.resolve():
        raise Refused(f"its core.worktree is elsewhere: {work_tree}", where, "git config --unset core.worktree",
                      "foreign-work-tree")
    if not work_tree and repository.common == repository.git_dir and \
            not is_inside(repository.directory, repository.git_dir):
        raise foreign(repository.directory, f"{repository.git_dir} does not say that this is its working tree",
                      f"git config core.worktree {repository.directory}")
    if _is_true(values.get("core.sparsecheckout", "")):
        raise Refused("is a sparse checkout: files that are not there cannot be told from files that were deleted",
                      where, "git sparse-checkout disable", "sparse")
    if "extensions.partialclone" in values:
        raise Refused("is a partial clone: some of its objects are only on another machine", where,
                      "clone it again without --filter", "partial-clone")
    if values.get("extensions.refstorage", "files") != "files":
        raise Refused("keeps its refs in a form that this release cannot read", where,
                      "git refs migrate --ref-format=files", "reftable")


def _is_true(value: str) -> bool:
    return value.lower() in ("true", "yes", "on", "1")


def without_secrets(url: str) -> str:
    """Return a remote's URL without user, password, query and fragment; empty for a path of this machine."""
    if "://" in url:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return ""
        return urlunsplit((parts.scheme, host + port, parts.path, "", "")) if host else ""
    found = _SCP.fullmatch(url)
    return f"ssh://{found[1]}/{found[2].lstrip('/')}" if found and not Path(url).exists() else ""
