"""Keep what a scan found: refs against garbage collection, bundles against the loss of a repository, the lock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lych_checkpoint.body.area import safe_name
from lych_checkpoint.body.members import Member, each
from lych_checkpoint.body.scans import Scan, Seen
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.manifest import BodyLock, Environment
from lych_checkpoint.repository import bundles, refs
from lych_checkpoint.repository.command import run
from lych_checkpoint.repository.place import Repository

_UNKNOWN = Environment()


def pin(scan: Scan, checkpoint_id: str) -> None:
    """Keep every commit of the scan under ``refs/lych/checkpoints/<id>``.

    Raises:
        Refused: a HEAD moved (``body-moved``). Repositories before it keep their ref: call `unpin`.
    """
    name = f"{refs.CHECKPOINTS}/{checkpoint_id}"

    def one(seen: Seen) -> None:
        refs.keep(seen.repository, name, seen.pin.commit, head=seen.pin.commit)
        if seen.pin.captured and seen.shadow is not None:
            borrowed = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(seen.repository.objects)}
            run(seen.shadow, "update-ref", name, seen.pin.captured, environment=borrowed)

    each(one, scan.seen)


def unpin(members: Sequence[Member], checkpoint_id: str) -> None:
    """Remove those refs; where there is none it does nothing."""
    each(lambda member: refs.drop(Repository.at(member.directory), f"{refs.CHECKPOINTS}/{checkpoint_id}"), members)


@contextmanager
def pinned(scan: Scan, checkpoint_id: str) -> Iterator[None]:
    """Pin for good, unless the body of the `with` fails."""
    try:
        pin(scan, checkpoint_id)
        yield
    except BaseException as error:
        try:
            unpin([seen.member for seen in scan.seen], checkpoint_id)
        except CheckpointError as second:
            error.add_note(f"refs/lych/checkpoints/{checkpoint_id} could not be removed: {second}")
        raise


def bundle(scan: Scan, checkpoint_id: str, into: Path) -> list[str]:
    """Write one bundle per repository into ``into``, with all history of what the scan found, and try each.

    Returns:
        A sentence for each bundle from which its repository could not be made anew; git checks harder on the way in
        than on the way out.

    Raises:
        Refused: an object is missing (``bundle-failed``).
    """
    into.mkdir(parents=True, exist_ok=True, mode=0o700)

    def one(seen: Seen) -> str:
        file = into / f"{safe_name(seen.member.path)}.bundle"
        bundles.write(
            seen.repository, seen.configuration, f"{refs.CHECKPOINTS}/{checkpoint_id}",
            seen.pin.captured or seen.pin.commit, file,
            alternates=(seen.shadow / "objects",) if seen.pin.captured and seen.shadow else (),
        )
        return bundles.doubt(seen.pin.object_format, file)

    return [doubt for doubt in each(one, scan.seen) if doubt]


def lock_of(
    scan: Scan, checkpoint_id: str, created_at: str, environment: Environment = _UNKNOWN,
) -> BodyLock:
    """Return the lock of the scanned body."""
    return BodyLock(checkpoint=checkpoint_id, created_at=created_at, repos=scan.pins, environment=environment)
