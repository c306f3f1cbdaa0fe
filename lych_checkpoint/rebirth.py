"""Rebirth: bring a body that is behind, missing or unbuilt into line with the soul, and start this worker anew.

Only with LYCH_REBIRTH=auto; but what a restore displaced while this host was away is replaced in any case: that is
the restore's own work, left to do here. Once per host: the first worker checks out and rebuilds, those that waited
find it done; all start again, since each has imported the old code. Nobody's uncommitted work is touched.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lych_checkpoint import body, gate, hosts, journal, process, witness
from lych_checkpoint.database import connect
from lych_checkpoint.errors import CheckpointError, GateRefused, GateUnsure, LockHeld
from lych_checkpoint.federation import Federation
from lych_checkpoint.manifest import BodyLock, RepoPin
from lych_checkpoint.rebuild import TRIES, Host
from lych_checkpoint.records import canonical, digest
from lych_checkpoint.witness import Witness

logger = logging.getLogger(__name__)

_STALE = "changed-since-import"
_MENDED = ("gate-behind", "gate-missing", "unbuilt", _STALE)
_COMES = ("behind", "missing")
_STAYS = ("aligned", "extra", "ahead")
#: How long a checkout waits for a restore, or for another host's checkout, to end.
_RESTORE_S = 30.0
#: Beside a rebuild's own time: another worker's checkout.
_CHECKOUT_S = 120.0
#: Counts how often this process was started again without passing, so that it cannot go on for ever.
_AGAIN = "_LYCH_REBIRTHS"


def pass_gate(federation: Federation, loaded: dict[str, str] | None) -> gate.Report:
    """Run the gate for a worker; mend what may be mended, and then do not return: the worker starts again.

    Raises:
        GateRefused: it may not start, or rebirth has stopped (code ``rebirth-stopped``).
        GateUnsure: it may not start yet, or a try at its rebirth failed (code ``rebirth-failed``).
        Away: the database or the vault cannot be reached.
    """
    settings = federation.settings
    auto, host = settings.rebirth == "auto", Host(settings.root)
    try:
        report = gate.check(federation, loaded=loaded,
                            before_imprint=(lambda: _refuse_unbuilt(federation, host)) if auto else None)
    except (GateRefused, GateUnsure) as error:
        if error.code != hosts.SLEPT and not (auto and error.code in _MENDED):
            raise
        logger.warning("%s: rebirth", error, extra={"event": "rebirth.began"})
        if error.code != _STALE:
            with host.held(settings.rebuild_timeout_s + _CHECKOUT_S):
                _mend(federation, host, error)
        if int(os.environ.get(_AGAIN, "0")) >= TRIES:
            raise
        logger.warning("Starting again on the new body", extra={"event": "rebirth.again"})
        os.environ[_AGAIN] = str(int(os.environ.get(_AGAIN, "0")) + 1)
        process.start_again()
    host.settle()
    os.environ.pop(_AGAIN, None)
    hosts.follow(settings.root, report.restored)
    return report


def retry(federation: Federation) -> None:
    """Let rebirth try again on this host: a person has looked why it stopped."""
    host = Host(federation.settings.root)
    with host.held(_CHECKOUT_S):
        host.settle()


def _refuse_unbuilt(federation: Federation, host: Host) -> None:
    if _is_unbuilt(federation, host):
        raise GateUnsure("the code's dependencies are not those of the last rebuild", str(host.place),
                         "run LYCH_REBUILD", "unbuilt")


def _is_unbuilt(federation: Federation, host: Host) -> bool:
    settings, state = federation.settings, host.state
    if state.ticket:
        return True
    if not settings.rebuild:
        return False
    if state.due:
        return True
    if state.built.get("commits") == body.fingerprint(settings.root, settings.core, settings.extensions):
        return False
    return bool(state.built.get("lockfiles", {}) != body.lockfiles(federation.members()))


def _mend(federation: Federation, host: Host, why: CheckpointError) -> None:
    """Do what is still to do, now that nobody else on this host does."""
    settings = federation.settings
    with connect(settings.need("database_url")) as connection:
        known = witness.read(connection)
    if known is None:
        raise why
    report, slept = gate.look(federation, known), why.code == hosts.SLEPT
    if not slept and not all(one.verdict in (*_COMES, *_STAYS) for one in report.repos.values()):
        raise why
    comes = {path for path, one in report.repos.items()
             if (one.verdict != "aligned" if slept else one.verdict in _COMES)}
    rebuild = settings.rebuild if settings.rebirth == "auto" else ()
    if not comes and not _is_unbuilt(federation, host):
        return
    goal = {path: one.witness if path in comes else one.disk for path, one in report.repos.items()}
    host.begin(digest(canonical({"body": goal, "rebuild": list(rebuild)})))
    try:
        _finish_checkout(federation, host, known)
        if comes:
            _check_out(federation, host, known, comes, why)
        if rebuild and _is_unbuilt(federation, host):
            built = {"commits": body.fingerprint(settings.root, settings.core, settings.extensions),
                     "lockfiles": body.lockfiles(federation.members())}
            logger.warning("Rebuilding: %s", " ".join(rebuild), extra={"event": "rebirth.rebuild"})
            host.rebuild(rebuild, timeout_s=settings.rebuild_timeout_s, cwd=settings.root, built=built)
    except GateRefused:
        host.settle()  # another try would find the same
        raise
    except CheckpointError as error:
        state = host.write(why=str(error))
        if state.tries >= TRIES:
            raise host.stopped() from error
        raise GateUnsure(f"rebirth failed (try {state.tries} of {TRIES}): {error.what}", error.where,
                         f"read {host.output}" if error.code.startswith("program-") else error.mend,
                         "rebirth-failed") from error


def _refuse_dirty(goes: BodyLock, why: CheckpointError) -> None:
    for pin in goes.repos:
        if pin.captured:
            raise GateRefused("is dirty: nothing is checked out over it", pin.path,
                              f"commit or stash what is there, or {why.mend}", "rebirth-dirty")


def _finish_checkout(federation: Federation, host: Host, known: Witness) -> None:
    """End a checkout that was killed: on, if the soul still asks for it."""
    state = host.state
    if not state.ticket:
        return
    lock, root = BodyLock.loads(state.lock, str(host.place)), federation.settings.root
    with _no_restore(federation):
        if all(known.repos.get(path, {}).get("commit") == commit for path, commit in lock.commits.items()):
            body.switch(lock, root, state.ticket, alone=True)
        _forget_checkout(federation, host, lock, state.ticket)


def _check_out(federation: Federation, host: Host, known: Witness, comes: set[str], why: CheckpointError) -> None:
    """Bring those repositories to the commits that the witness names, all of them or none."""
    settings, ticket = federation.settings, federation.vault.new_id(datetime.now(UTC))
    # What the soul does not know goes: a restore that this host slept through displaced it elsewhere.
    lock, bundles = _wanted(federation, known, comes & set(known.repos), why)
    found = federation.found()
    ours = (*federation.leave_out(), *(member.directory for member in found if member.path not in comes))
    with _no_restore(federation):
        body.stage(lock, settings.root, bundles, ticket)
        try:
            goes = body.displace([one for one in found if one.path in comes], settings.root, ticket,
                                 federation.shadow, ours)
            _refuse_dirty(goes, why)
        except BaseException:
            body.unpin(found, ticket, federation.shadow)
            body.unstage(lock, settings.root, ticket)
            raise
        host.write(ticket=ticket, lock=lock.dumps(), due=bool(settings.rebuild))
        body.switch(lock, settings.root, ticket)
        differences = body.verify(lock, settings.root, ours, federation.shadow)
        if differences:
            raise GateUnsure(f"the checkout is not what was asked for: {differences[0]}", str(settings.root), "",
                             "body-differs")
        _forget_checkout(federation, host, lock, ticket)
    logger.warning("Checked out %s", ", ".join(sorted(comes)), extra={"event": "rebirth.checkout"})


def _forget_checkout(federation: Federation, host: Host, lock: BodyLock, ticket: str) -> None:
    body.unpin(federation.found(), ticket, federation.shadow)
    body.unstage(lock, federation.settings.root, ticket)
    host.write(ticket="", lock="")


def _wanted(
    federation: Federation, known: Witness, comes: set[str], why: CheckpointError,
) -> tuple[BodyLock, Path]:
    """Return the lock of what comes, and where its bundles are: of the newest checkpoint that has all of it.

    Without one, what is merely behind has its commits at hand.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    wanted = {path: known.repos[path]["commit"] for path in comes}
    for manifest in reversed(list(federation.vault.manifests())):
        if wanted.items() <= manifest.repos.items():
            folder = federation.vault.path(manifest.id)
            kept = BodyLock.loads((folder / "lychd.lock").read_text(), str(folder / "lychd.lock"))
            pins = tuple(pin for pin in kept.repos if pin.path in comes)
            # Under no name: what a restore set aside comes back with an undo, not with a checkout.
            return replace(kept, checkpoint="", created_at=now, repos=pins), folder / "body"
    roles = {member.path: member.role for member in federation.found()}
    if not comes <= set(roles):
        raise why
    return BodyLock(checkpoint="", created_at=now, repos=tuple(
        RepoPin(path=path, role=roles[path], object_format="sha256" if len(commit) == 64 else "sha1", commit=commit,
                tree=known.repos[path]["tree"]) for path, commit in wanted.items()
    )), Path(os.devnull)


@contextmanager
def _no_restore(federation: Federation) -> Iterator[None]:
    """Keep a restore, and another host's checkout, away from the body's switch.

    Raises:
        GateUnsure: one works there for too long, or has displaced something and not ended.
    """
    deadline_s = time.monotonic() + _RESTORE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(journal.held(federation.vault))
                break
            except LockHeld as error:
                if time.monotonic() > deadline_s:
                    raise GateUnsure(error.what, error.where, error.mend, "restore-open") from error
                time.sleep(0.1)
        gate.refuse_open_restore(federation)
        yield
