"""Look at everything a checkpoint stands on, change nothing, and say the command that mends each fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lych_checkpoint import body, broadcast, journal, witness
from lych_checkpoint.database import connect
from lych_checkpoint.errors import Away, CheckpointError, Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import roster
from lych_checkpoint.soul import Soul

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. ``state`` is ok, warning or fault; ``exit_code`` is what the fault alone would give."""

    check: str
    state: str
    what: str
    mend: str = ""
    exit_code: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the finding for `doctor --json`."""
        record = asdict(self)
        del record["exit_code"]
        return record


def doctor(federation: Federation, app: Any = None) -> list[Finding]:
    """Return one finding for each thing looked at; a fault in one hides no other."""
    checks: list[tuple[str, Callable[[Federation], Iterator[Finding]]]] = [
        ("vault", _vault), ("redis", _redis), ("database", _database), ("drivers", _drivers), ("body", _body),
        ("workers", _workers), ("queue", _queue),
    ]
    if app is not None:
        checks.append(("broker", lambda federation: _broker(federation, app)))
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check(federation)
        except CheckpointError as error:
            found.append(Finding(check=name, state=FAULT, what=f"{error.where}: {error.what}", mend=error.mend,
                                 exit_code=error.exit_code))
    return found


def exit_code(findings: list[Finding]) -> int:
    """Return 75 where a server is away, else 1 for any fault, else 0."""
    codes = {one.exit_code for one in findings if one.state == FAULT}
    return Away.exit_code if Away.exit_code in codes else 1 if codes else 0


def _vault(federation: Federation) -> Iterator[Finding]:
    federation.vault.open()
    yield Finding(check="vault", state=OK, what=f"{federation.vault.root} is writable")
    key = federation.settings.key_path
    if not key.is_file():
        raise Refused(f"the signing key {key} is missing", "vault", "lych-checkpoint init", "key-missing")
    if key.stat().st_mode & 0o077:
        yield Finding(check="vault", state=WARNING, what=f"the signing key {key} is readable by others",
                      mend=f"chmod 600 {key}")
    if key.is_relative_to(federation.vault.root):
        what = "the signing key lies in the vault: it guards against accident, not against who can write there"
        yield Finding(check="vault", state=WARNING, what=what, mend="set LYCH_SIGNING_KEY to a file elsewhere")
    entry = journal.read(federation.vault)
    if entry is not None:
        yield Finding(check="vault", state=FAULT, what=f"a restore is {entry.phase}", mend="lych-checkpoint recover",
                      exit_code=6)


def _redis(federation: Federation) -> Iterator[Finding]:
    store = federation.store()
    facts = store.facts()
    yield Finding(check="redis", state=OK, what=f"{store.where} answers, version {facts['redis_version']}")
    if not int(facts.get("aof_enabled", 0)) and not facts.get("saves"):
        what = "it keeps nothing on disk: a restart forgets freezes and messages"
        yield Finding(check="redis", state=WARNING, what=what, mend="set `appendonly yes`")
    if facts.get("maxmemory_policy", "noeviction") != "noeviction":
        yield Finding(check="redis", state=WARNING, what=f"it may evict a lease ({facts['maxmemory_policy']})",
                      mend="set `maxmemory-policy noeviction`")


def _database(federation: Federation) -> Iterator[Finding]:
    with connect(federation.settings.need("database_url")) as connection:
        known = witness.read(connection)
        version = connection.info.server_version // 10000
        fsync = connection.execute("SHOW fsync").fetchone()
    yield Finding(check="database", state=OK, what=f"PostgreSQL {version} answers")
    if fsync is not None and fsync[0] != "on":
        yield Finding(check="database", state=WARNING, what="fsync is off: a crash may lose what was captured",
                      mend="set fsync = on")
    if known is None:
        raise Refused("the soul has no witness", "database", "lych-checkpoint init", "no-witness")
    yield Finding(check="database", state=OK, what=f"the witness says generation {known.generation}, {known.state}")


def _drivers(federation: Federation) -> Iterator[Finding]:
    settings = federation.settings
    for name, unfit in Soul.reports(federation.ground(), settings.helper):
        if unfit is None:
            yield Finding(check="drivers", state=OK, what=f"{name}: usable")
        else:
            yield Finding(check="drivers", state=WARNING, what=f"{name}: {unfit.what}", mend=unfit.mend)
    soul = Soul.open(federation.ground(), settings.driver, settings.writers, settings.helper)
    yield Finding(check="drivers", state=OK, what=f"{settings.driver} takes {soul.driver.name}")
    begun = Soul.begun(federation.ground(), settings.helper)
    for checkpoint in sorted(set(begun) - set(federation.vault.ids())):
        ours = begun[checkpoint] == soul.driver.name
        yield Finding(check="drivers", state=WARNING, what=f"a create that died left {checkpoint} beside PGDATA, "
                      f"by the driver {begun[checkpoint]}",
                      mend=f"{'' if ours else f'LYCH_DRIVER={begun[checkpoint]} '}lych-checkpoint create")
    for warning in soul.preflight():
        yield Finding(check="drivers", state=WARNING, what=warning)


def _body(federation: Federation) -> Iterator[Finding]:
    members = federation.members()
    yield Finding(check="body", state=OK, what=f"{len(members)} repositories below {federation.settings.root}")
    version = body.git_version()
    mend = "install a git with the mends for CVE-2025-48384, unless your system took them into this one"
    yield Finding(check="body", state=WARNING if body.is_old(version) else OK, what=f"git {version}",
                  mend=mend if body.is_old(version) else "")
    for stray in federation.strays():
        yield Finding(check="body", state=WARNING, what=stray, mend="list it, or leave it out by a leading `!`")
    with federation.scanning(capture=False) as scan:
        dirty = [one.member.path for one in scan.seen if one.dirty]
        what = f"dirty, to be captured: {', '.join(dirty)}" if dirty else "clean"
        yield Finding(check="body", state=OK, what=f"{what}; re-checked by {scan.worktree_check}")


def _workers(federation: Federation) -> Iterator[Finding]:
    entries = roster.entries(federation.store())
    yield Finding(check="workers", state=OK, what=f"{len(entries)} in the roster")
    if len({entry.loaded for entry in entries.values()}) > 1:
        yield Finding(check="workers", state=FAULT, what="they have imported different code",
                      mend="restart the workers", exit_code=1)


def _queue(federation: Federation) -> Iterator[Finding]:
    aside = federation.vault.quarantine.count()
    yield Finding(check="queue", state=WARNING if aside else OK, what=f"{aside} messages are put aside",
                  mend="lych-checkpoint queue list" if aside else "")


def _broker(federation: Federation, app: Any) -> Iterator[Finding]:
    broadcast.check_fanout(app)
    yield Finding(check="broker", state=OK, what="it can broadcast")
    if broadcast.takes_back(app):  # no client can ask RabbitMQ how it is set
        settings = federation.settings
        longest_s = settings.ack_timeout_s + settings.drain_timeout_s + settings.lease_s
        what = (f"RabbitMQ's consumer_timeout (30 minutes unless set) must exceed the longest freeze: "
                f"{longest_s:g} s until it drained, by your settings, and what `freeze --for` is told")
        yield Finding(check="broker", state=OK if longest_s < broadcast.CONSUMER_TIMEOUT_S else WARNING, what=what,
                      mend="raise consumer_timeout in rabbitmq.conf, or lower LYCH_DRAIN_TIMEOUT_S")
