"""Write so that a crash leaves the old file or the new one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lych_checkpoint.errors import Away, Refused

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the file system's errors around ``where`` into ours; those of other places pass as they are.

    Raises:
        Refused: no room, no permission, or a read-only file system.
        Away: the directory is not there, or not reachable.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # a server's, from within the block
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(where)
        if not (Path(name).is_relative_to(where.parent) or where.is_relative_to(name)):
            raise
        if error.errno in _FULL:
            raise Refused("there is no room left", name, "make room, then try again", "vault-full") from error
        if error.errno in _FORBIDDEN:
            raise Refused(f"cannot be written: {error.strerror}", name, "run as the vault's owner",
                          "vault-unwritable") from error
        raise Away(f"cannot be reached: {error.strerror}", name,
                   "mount or set LYCH_VAULT, then `lych-checkpoint init`", "vault-away") from error


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` in one step that survives a crash.

    It is written aside, fsynced, renamed, and the directory fsynced.

    Raises:
        Refused, Away: as `writing`. The old file stands, unless only the last fsync failed: then it may be either.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # whatever the umask is
                if os.geteuid() == 0:  # what root writes into somebody's directory is that somebody's
                    folder = path.parent.stat()
                    os.fchown(descriptor, folder.st_uid, folder.st_gid)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Make the names in a directory durable; a rename alone is not."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: Path) -> None:
    """Make every file and directory below ``root`` durable and ours alone: files 0600, directories 0700."""
    for folder, _names, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fchmod(descriptor, 0o600)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        Path(folder).chmod(0o700)
        flush_directory(Path(folder))
