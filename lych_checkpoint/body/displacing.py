"""Capture the body that a restore is about to displace, whatever state it is in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lych_checkpoint.body.area import Area, safe_name
from lych_checkpoint.body.members import Member, each
from lych_checkpoint.body.scans import left_out_of
from lych_checkpoint.body.sound import Sound, open_sound
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock, RepoPin
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.repository import chains, refs, worktree
from lych_checkpoint.repository.capture import capture
from lych_checkpoint.repository.lens import opened
from lych_checkpoint.repository.objects import Reader, reading
from lych_checkpoint.repository.place import UNREADABLE, Repository


def displace(
    members: Sequence[Member], root: Path, ticket: str, shadow: Path, leave_out: Sequence[Path] = (),
) -> BodyLock:
    """Capture the present body, dirty or not. Nothing of it is changed; done again it captures again.

    Args:
        members: from `find`, so that broken ones are among them.
        root: LYCH_ROOT.
        ticket: names this restore; keeps the commits under ``refs/lych/safety/<ticket>``.
        shadow: directory of the stores of captured trees.
        leave_out: absolute paths that are ours although they lie inside a repository.

    Returns:
        The lock that `switch_back` takes, named by the ticket. A repository that cannot be read has the commit
        `UNREADABLE` in it: the switch keeps it whole.
    """
    area = Area(root.absolute(), ticket)
    area.make()
    ours = [*leave_out, area.root / "lychd.lock", shadow]
    make_directory(shadow, 0o700)
    with reading() as reader:
        pins = each(lambda member: _displace(reader, member, left_out_of(member, members, ours), shadow, ticket),
                    members)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    lock = BodyLock(checkpoint=ticket, created_at=now, repos=tuple(pins))
    area.remember({"displaced": lock.dumps(), "shadow": os.fspath(shadow.absolute()),
                   "leave_out": [os.fspath(path.absolute()) for path in ours]})
    return lock


def weight_bytes(members: Sequence[Member]) -> int:
    """Return what the bundles of these repositories may weigh at most: all that their object stores hold."""
    def one(member: Member) -> int:
        try:
            repository = Repository.at(member.directory)
        except Refused:
            return 0
        return sum((Path(folder) / name).lstat().st_size
                   for folder, _, names in os.walk(repository.objects) for name in names)

    return sum(each(one, members))


def _displace(reader: Reader, member: Member, leave_out: tuple[bytes, ...], shadow: Path, ticket: str) -> RepoPin:
    sound = open_sound(reader, member.directory)
    if sound is None:
        return RepoPin(path=member.path, role=member.role, object_format="sha1", commit=UNREADABLE, tree=UNREADABLE)
    repository, head, ref = sound.repository, sound.head, f"{refs.SAFETY}/{ticket}"
    captured = captured_tree = ""
    store = shadow / f"{safe_name(member.path)}.git"
    if _needs_capture(sound, leave_out):
        captured, captured_tree = capture(repository, sound.configuration, head.commit, store, ref, leave_out)
    refs.keep(repository, ref, head.commit)
    _, lockfiles = reader.lockfiles(repository, captured or head.commit, (store / "objects",) if captured else ())
    return RepoPin(
        path=member.path, role=member.role, object_format=sound.configuration.object_format, commit=head.commit,
        tree=sound.tree, branch=head.branch, remote=sound.configuration.remote, captured=captured,
        captured_tree=captured_tree, lockfiles=lockfiles,
    )


def _needs_capture(sound: Sound, leave_out: tuple[bytes, ...]) -> bool:
    with opened(sound.repository, sound.configuration, sound.head.commit, fresh=False, leave_out=leave_out) as lens:
        try:
            return bool(worktree.changes(lens) or worktree.tracked(lens).hidden or worktree.filtered(lens))
        except Refused as error:
            if error.code != "git-failed":
                raise
            return True  # a broken index says nothing


def bundle_lock(
    lock: BodyLock, root: Path, ticket: str, into: Path, before: Path | None = None,
) -> list[str]:
    """Write bundles of every repository of a displaced body, before or after the switch; as `bundle`.

    Raises:
        Refused: an object is missing (``bundle-failed``).
    """
    area = Area(root.absolute(), ticket)
    shadow = Path(area.recall().get("shadow", os.devnull))
    into.mkdir(parents=True, exist_ok=True, mode=0o700)

    def one(reader: Reader, pin: RepoPin) -> str:
        moved = area.repository("old", pin.path)
        sound = open_sound(reader, moved if moved.exists() else area.root / pin.path)
        if pin.commit == UNREADABLE:
            return ""
        if sound is None:
            raise Refused("cannot be read any more", pin.path, "", "bundle-failed")
        name = safe_name(pin.path)
        return chains.write(
            sound.repository, sound.configuration, f"{refs.SAFETY}/{ticket}", pin.captured or pin.commit, into, name,
            before=before, alternates=(shadow / f"{name}.git" / "objects",),
        )

    with reading() as reader:
        return [doubt for doubt in each(lambda pin: one(reader, pin), lock.repos) if doubt]
