"""Capture the body that a restore is about to displace, whatever state it is in."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lych_checkpoint.body import dirt
from lych_checkpoint.body.area import Area, flush, safe_name
from lych_checkpoint.body.dirt import LIMIT_BYTES
from lych_checkpoint.body.members import Member, each
from lych_checkpoint.body.returning import Returning
from lych_checkpoint.body.scans import left_out_of
from lych_checkpoint.body.sound import Sound, homes, open_sound
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import BodyLock, RepoPin
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.repository import capture, chains, refs, worktree
from lych_checkpoint.repository.lens import opened
from lych_checkpoint.repository.objects import Reader, reading
from lych_checkpoint.repository.place import UNREADABLE, Repository

_NICE = 10


def displace(
    members: Sequence[Member], root: Path, ticket: str, shadow: Path, leave_out: Sequence[Path] = (), *,
    limit_bytes: int = LIMIT_BYTES,
) -> BodyLock:
    """Capture the present body, dirty or not, durably. Nothing of it is changed; done again it captures again.

    Workers are frozen meanwhile, so what one dirty repository may cost has a limit: its largest changed and untracked
    files above that are not captured. The switch moves them aside whole, see `unheld`.

    Args:
        members: from `find`, so that broken ones are among them.
        root: LYCH_ROOT.
        ticket: names this restore; keeps the commits under ``refs/lych/safety/<ticket>``.
        shadow: directory of the stores of captured trees.
        leave_out: absolute paths that are ours although they lie inside a repository.
        limit_bytes: what changed and untracked files of one repository are captured up to.

    Returns:
        The lock that `switch_back` takes, named by the ticket. A repository that cannot be read has the commit
        `UNREADABLE` in it: the switch keeps it whole.

    Raises:
        Refused: git did not end in time (``git-slow``), or failed.
    """
    area = Area(root.absolute(), ticket)
    area.make()
    ours = [*leave_out, area.root / "lychd.lock", shadow]
    make_directory(shadow, 0o700)
    known, spared = homes(area.root, [member.directory for member in members]), dict[str, list[str]]()

    def one(reader: Reader, member: Member) -> RepoPin:
        # What `stage` found to be beyond repair it made anew: that is not looked into again.
        anew = area.repository("new", member.path).exists()
        sound = None if anew else open_sound(reader, member.directory, known)
        if sound is None:
            return RepoPin(path=member.path, role=member.role, object_format="sha1", commit=UNREADABLE,
                           tree=UNREADABLE)
        pin, spare = _displace(reader, member, sound, left_out_of(member, members, ours), shadow, ticket, limit_bytes)
        if spare:
            spared[member.path] = [worktree.shown(path) for path in spare]
        return pin

    with reading() as reader:
        pins = each(lambda member: one(reader, member), members)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    lock = BodyLock(checkpoint=ticket, created_at=now, repos=tuple(pins))
    # git does not sync the objects and refs that it writes, and the switch is about to overwrite the files.
    flush([shadow, area.path, *(place for member in members for place in _stores(member))])
    area.remember({"displaced": lock.dumps(), "shadow": os.fspath(shadow.absolute()),
                   "leave_out": [os.fspath(path.absolute()) for path in ours], "spared": spared})
    return lock


def unheld(root: Path, ticket: str) -> dict[str, tuple[str, ...]]:
    """Return by path the files that `displace` did not capture, for people; the switch keeps them in its place."""
    return {path: tuple(names) for path, names in Area(root.absolute(), ticket).recall().get("spared", {}).items()}


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


def _stores(member: Member) -> tuple[Path, ...]:
    try:
        repository = Repository.at(member.directory)
    except Refused:
        return ()
    return repository.git_dir, repository.common, repository.objects


def _displace(
    reader: Reader, member: Member, sound: Sound, leave_out: tuple[bytes, ...], shadow: Path, ticket: str,
    limit_bytes: int,
) -> tuple[RepoPin, tuple[bytes, ...]]:
    repository, head, ref = sound.repository, sound.head, f"{refs.SAFETY}/{ticket}"
    captured = captured_tree = ""
    store = shadow / f"{safe_name(member.path)}.git"
    spare: tuple[bytes, ...] = ()
    dirty = _dirty(sound, leave_out)
    if dirty is not None:
        spare = dirt.excess(member.directory, dirty, limit_bytes)
        captured, captured_tree = capture.capture(repository, sound.configuration, head.commit, store, ref, leave_out,
                                                  spare)
    refs.keep(repository, ref, head.commit)
    _, lockfiles = reader.lockfiles(repository, captured or head.commit, (store / "objects",) if captured else ())
    pin = RepoPin(
        path=member.path, role=member.role, object_format=sound.configuration.object_format, commit=head.commit,
        tree=sound.tree, branch=head.branch, remote=sound.configuration.remote, captured=captured,
        captured_tree=captured_tree, lockfiles=lockfiles,
    )
    return pin, spare


def _dirty(sound: Sound, leave_out: tuple[bytes, ...]) -> set[bytes] | None:
    """Return the paths that are not as the commit says; all, where a broken index says nothing; None if clean."""
    with opened(sound.repository, sound.configuration, sound.head.commit, fresh=False, leave_out=leave_out) as lens:
        try:
            changed = {change.path for change in worktree.changes(lens)}
            return changed | {*worktree.tracked(lens).hidden, *worktree.filtered(lens)} or None
        except Refused as error:
            if error.code != "git-failed":
                raise
    return capture.paths(sound.repository, sound.configuration, sound.head.commit, leave_out)


def bundle_lock(
    lock: BodyLock, root: Path, ticket: str, into: Path, before: Path | None = None,
) -> list[str]:
    """Write bundles of every repository of a displaced body, before or after the switch; as `bundle`.

    Nobody waits for it, so it gives way to whoever wants the CPU: after a restore that are the workers that start.

    Raises:
        Refused: an object is missing (``bundle-failed``).
    """
    area = Area(root.absolute(), ticket)
    shadow = Path(area.recall().get("shadow", os.devnull))
    into.mkdir(parents=True, exist_ok=True, mode=0o700)

    def one(reader: Reader, pin: RepoPin) -> str:
        thread = threading.get_native_id()  # Linux has a niceness for each thread, and its gits inherit it
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        sound = open_sound(reader, Returning(area).repository(pin.path) or area.root / pin.path)
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
