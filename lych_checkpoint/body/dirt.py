"""What of a dirty working tree may be captured: not without bound, and nothing that looks like a secret."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.body.members import Member
from lych_checkpoint.errors import Refused
from lych_checkpoint.repository.worktree import Change, Folders, shown

#: Bytes of changed and untracked files that one repository may hold, if nobody says otherwise.
LIMIT_BYTES = 256 << 20
_NAMED = 5
#: Names, in lower case, under which keys and passwords lie about.
_SECRET = re.compile(r"""
    \.env(?:\..+)? | \.netrc | \.pgpass | \.htpasswd | \.git-credentials | \.npmrc | \.pypirc | \.vault[-_]pass
    | id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)? | .*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|ppk)
    | (?:.*[-_.])?(?:credentials?|secrets?|passwords?|service[-_]account)
      (?:\.(?:json|ya?ml|toml|ini|cfg|conf|txt|csv))?
""", re.VERBOSE)
_HARMLESS = re.compile(r".*\.(?:example|sample|template|dist|pub)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a scan does with a dirty repository.

    ``refuse`` it, ``capture`` it into a store below ``shadow``, or ``admit`` it: only see if it could be captured.
    """

    dirty: str = "refuse"
    shadow: Path | None = None
    limit_bytes: int = LIMIT_BYTES

    @property
    def captures(self) -> bool:
        """Whether dirty trees are captured."""
        return self.dirty == "capture" and self.shadow is not None


def refuse(member: Member, changes: list[Change], filtered: list[bytes]) -> Refused:
    """Return the error that names what is dirty."""
    if not changes:
        return Refused(f"a filter program makes the bytes of {shown(filtered[0])}: git does not hold them",
                       member.path, "set LYCH_DIRTY=capture", "dirty")
    named = ", ".join(str(change) for change in changes[:_NAMED])
    rest = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    return Refused(f"is dirty: {named}{rest}", member.path,
                   "commit, stash or ignore them, or set LYCH_DIRTY=capture", "dirty")


def admit(member: Member, changes: list[Change], others: Iterable[bytes], limit_bytes: int) -> None:
    """Make sure that a dirty tree may be captured.

    Args:
        member: the repository.
        changes: what differs from its commit.
        others: further paths whose bytes git does not hold as they are.
        limit_bytes: size that all of it together may have.

    Raises:
        Refused: a file that git does not know looks like a secret (``secret``), or all is too large (``too-large``).
    """
    for change in changes:
        if change.what in ("untracked", "added") and looks_secret(change.path):
            raise Refused(f"{shown(change.path)} looks like a secret: it would be copied into the vault", member.path,
                          "name it in .gitignore, or commit it", "secret")
    size_bytes = sum(_sizes(member.directory, {*(change.path for change in changes), *others}).values())
    if size_bytes > limit_bytes:
        raise Refused(f"its changed and untracked files hold {size_bytes} bytes, more than {limit_bytes}",
                      member.path, "ignore or commit the large ones, or raise LYCH_DIRTY_LIMIT_BYTES", "too-large")


def looks_secret(path: bytes) -> bool:
    """Whether a file of that name is likely to hold a key or a password."""
    name = os.path.basename(path).decode(errors="replace").lower()
    return bool(_SECRET.fullmatch(name)) and not _HARMLESS.fullmatch(name)


def excess(directory: Path, paths: Iterable[bytes], limit_bytes: int) -> tuple[bytes, ...]:
    """Return the largest of the files, so many that the others together do not exceed the limit."""
    sizes = sorted(_sizes(directory, set(paths)).items(), key=lambda item: (item[1], item[0]))
    whole, kept = 0, 0
    for _, size_bytes in sizes:
        whole += size_bytes
        kept += whole <= limit_bytes
    return tuple(path for path, _ in sizes[kept:])


def _sizes(directory: Path, paths: set[bytes]) -> dict[bytes, int]:
    folders, root = Folders(directory), os.fsencode(directory)
    return {path: os.lstat(os.path.join(root, path)).st_size for path in paths if stat.S_ISREG(folders.mode(path))}
