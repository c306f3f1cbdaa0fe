"""Keep what a scan found: refs against garbage collection, bundles against the loss of a repository, the lock."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lych_checkpoint.body.area import safe_name
from lych_checkpoint.body.members import Member, each
from lych_checkpoint.body.scans import Scan, Seen
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.manifest import BodyLock, Environment
from lych_checkpoint.repository import chains, refs
from lych_checkpoint.repository.place import Repository

logger = logging.getLogger(__name__)

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
            refs.keep_in(seen.shadow, name, seen.pin.captured, seen.repository.objects)

    each(one, scan.seen)


def unpin(members: Sequence[Member], name: str, shadow: Path | None = None) -> None:
    """Let go of what `pin` kept for a checkpoint, or `displace` under a ticket; nothing there is fine.

    Args:
        members: whose refs; one that is broken keeps them, with a warning.
        name: the checkpoint's id: a safety copy bears its ticket.
        shadow: directory of the stores of captured trees, which bear the same refs.
    """
    names = (f"{refs.CHECKPOINTS}/{name}", f"{refs.SAFETY}/{name}")

    def one(member: Member) -> None:
        store = shadow / f"{safe_name(member.path)}.git" if shadow else None
        try:
            if store and (store / "HEAD").is_file():
                refs.drop_in(store, *names)
            refs.drop(Repository.at(member.directory), *names)
        except Refused as error:
            if error.code != "no-repository":
                logger.warning("refs/lych/*/%s were left: %s", name, error, extra={"event": "body.ref_left"})

    each(one, members)


@contextmanager
def pinned(scan: Scan, checkpoint_id: str) -> Iterator[None]:
    """Pin for good, unless the body of the `with` fails."""
    try:
        pin(scan, checkpoint_id)
        yield
    except BaseException as error:
        try:
            unpin([seen.member for seen in scan.seen], checkpoint_id, scan.policy.shadow)
        except CheckpointError as second:
            error.add_note(f"refs/lych/checkpoints/{checkpoint_id} could not be removed: {second}")
        raise


def bundle(scan: Scan, checkpoint_id: str, into: Path, before: Path | None = None) -> list[str]:
    """Write bundles of every repository into ``into``, with all history of what the scan found, and try them.

    Args:
        scan: what was found.
        checkpoint_id: names its refs.
        into: directory of the checkpoint's bundles.
        before: that of an earlier checkpoint, for what need not be written again; see `chains.write`.

    Returns:
        A sentence for each repository that could not be made anew; git checks harder on the way in than on the way
        out.

    Raises:
        Refused: an object is missing (``bundle-failed``).
    """
    into.mkdir(parents=True, exist_ok=True, mode=0o700)

    def one(seen: Seen) -> str:
        return chains.write(
            seen.repository, seen.configuration, f"{refs.CHECKPOINTS}/{checkpoint_id}",
            seen.pin.captured or seen.pin.commit, into, safe_name(seen.member.path), before=before,
            alternates=(seen.shadow / "objects",) if seen.shadow else (),
        )

    return [doubt for doubt in each(one, scan.seen) if doubt]


def lock_of(
    scan: Scan, checkpoint_id: str, created_at: str, environment: Environment = _UNKNOWN,
) -> BodyLock:
    """Return the lock of the scanned body."""
    return BodyLock(checkpoint=checkpoint_id, created_at=created_at, repos=scan.pins, environment=environment)
