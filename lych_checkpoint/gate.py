"""The rehydration gate: does the code on disk belong to the data's own record of its code?

Aligned boots; ahead boots and imprints; all else refuses with the command that mends it. "No" is `GateRefused` (78);
"cannot know yet" is `GateUnsure` or `Away` (75). Uncommitted work is a warning, never a refusal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lych_checkpoint import body, eras, hosts, journal, witness
from lych_checkpoint.database import Connection, connect
from lych_checkpoint.database.server import identity, same
from lych_checkpoint.eras import Present
from lych_checkpoint.errors import GateRefused, GateUnsure, Refused, gate_answers
from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
from lych_checkpoint.witness import Witness

logger = logging.getLogger(__name__)

#: From good to bad; the worst repository decides.
_ORDER = ("aligned", "extra", "ahead", "behind", "diverged", "unknown", "missing")
_BOOTS = ("aligned", "extra", "ahead")
_OPEN_PHASES = ("closing", "switching")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoVerdict:
    """How one repository stands: its commit on disk and in the witness, empty where there is none."""

    verdict: str
    disk: str
    witness: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the gate saw.

    ``generation`` is the witness's, after an imprint if there was one; ``restored`` that of the last restore;
    ``dirty`` names the repositories with uncommitted work, None where nobody looked.
    """

    verdict: str
    generation: int
    restored: int
    repos: dict[str, RepoVerdict]
    dirty: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of `gate --json` (without ``schema``)."""
        return asdict(self)


@gate_answers()
def check(
    federation: Federation | None = None, *, loaded: dict[str, str] | None = None,
    before_imprint: Callable[[], None] | None = None,
) -> Report:
    """Let this process start, or raise why not.

    Args:
        federation: opened from the settings if not given, so that web processes call it bare.
        loaded: the commits at the time this process imported its code.
        before_imprint: called where the body may boot; what it raises keeps it from being imprinted.

    Raises:
        GateRefused: body and soul do not belong together; the message has the mending command.
        GateUnsure: a restore is open, or the code changed since it was imported.
        Away: the database or the vault cannot be reached.
    """
    federation = federation or Federation(Settings.load())
    federation.vault.open()
    with connect(federation.settings.need("database_url")) as connection:
        refuse_open_restore(federation)
        known = witness.read(connection)
        if known is None:
            known = _first_witness(federation, connection)
        _refuse_other(federation, known)
        if loaded is not None and loaded != _fingerprint(federation):
            raise GateUnsure("the code changed since this process imported it", str(federation.settings.root),
                             "start the process again", "changed-since-import")
        report = look(federation, known)
        if known.state == "restoring":
            _refuse_unless(report.verdict == "aligned", known)
            return report
        soul = identity(connection)
        # In this order: a restore writes its line of the lineage before it closes its journal.
        restored = journal.read(federation.vault) is None
        last = federation.vault.last_lineage()
        if _is_rewound(known, report, last):
            if witness.read(connection) != known:  # another gate imprinted meanwhile
                return check(federation, loaded=loaded, before_imprint=before_imprint)
            raise _rewound(known, report, last)
        if restored:
            _refuse_foreign(known, soul, last)
        if report.verdict != "aligned":
            _refuse_slept(federation, report)
        if report.verdict not in _BOOTS:
            raise refusal(federation, report)
        if before_imprint is not None:
            before_imprint()
        if report.verdict != "aligned" or not known.signature:
            refuse_open_restore(federation)  # again: since then, one may have looked for the last imprint
            known = witness.imprint(connection, *body.pins(federation.members()))
            federation.vault.append_lineage("imprint", known.generation, known.signature, soul=soul)
            logger.info("Imprinted generation %d", known.generation, extra={"event": "gate.imprinted"})
            report = with_dirt(federation, report)  # once for each upgrade: an aligned boot must not wait for it
        elif last is None or known.generation > int(last["generation"]):
            federation.vault.append_lineage("catch-up", known.generation, known.signature, soul=soul)
    return replace(report, generation=known.generation)


def adopt(federation: Federation, reason: str) -> Report:
    """Take the body on disk and these data as a pair, by a person's word, which the lineage keeps.

    For a wanted downgrade, a removed extension or rewritten history.

    Raises:
        GateRefused: vault and data are two federations', or the data have no witness and the vault has a past.
        GateUnsure: a restore is open.
        Away: the database or the vault cannot be reached.
    """
    federation.vault.open()
    refuse_open_restore(federation)
    last = federation.vault.last_lineage()
    with connect(federation.settings.need("database_url")) as connection:
        _refuse_other(federation, witness.read(connection) or _first_witness(federation, connection))
        known = witness.imprint(connection, *body.pins(federation.members()),
                                above=int(last["generation"]) if last else 0)
        soul = identity(connection)
    federation.vault.append_lineage("adopt", known.generation, known.signature, soul=soul, reason=reason)
    logger.warning("Adopted generation %d: %s", known.generation, reason, extra={"event": "gate.adopted"})
    return look(federation, known)


def with_dirt(federation: Federation, report: Report) -> Report:
    """Look for uncommitted work and warn of it: the witness names commits, and other bytes lie on top of them."""
    dirty = [path for path, one in federation.uncommitted().items() if one is None or one.count]
    if dirty:
        logger.warning("Uncommitted work in %s", ", ".join(dirty), extra={"event": "gate.dirty"})
    return replace(report, dirty=dirty)


def look(federation: Federation, known: Witness) -> Report:
    """Compare the body on disk with a witness. Changes nothing, decides nothing."""
    settings = federation.settings
    standing = body.survey(settings.root, settings.core, settings.extensions)
    repos = {}
    for path in sorted({*standing, *known.repos}):
        disk, recorded = standing.get(path), known.repos.get(path)
        if disk is None:
            verdict = "missing"
        elif recorded is None:
            verdict = "extra"
        else:
            verdict = body.relation(settings.root / path, disk, recorded["commit"], recorded["tree"])
        repos[path] = RepoVerdict(verdict=verdict, disk=disk.commit if disk else "",
                                  witness=recorded["commit"] if recorded else "")
    worst = max((one.verdict for one in repos.values()), key=_ORDER.index, default="aligned")
    return Report(verdict="ahead" if worst == "extra" else worst, generation=known.generation,
                  restored=known.restored, repos=repos)


def refusal(federation: Federation, report: Report) -> GateRefused:
    """Return the error that names the worst repository, both commits and the mending command."""
    path, one = max(report.repos.items(), key=lambda item: _ORDER.index(item[1].verdict))
    names = [item.id for item in federation.vault.manifests() if item.repos.get(path) == one.witness]
    mend = f"lych-checkpoint restore {names[-1]}" if names else (
        f"check out {one.witness[:12]} in {path}, or `lych-checkpoint restore latest`")
    cut = ""
    if one.verdict == "unknown" and body.is_shallow(federation.settings.root / path):
        cut, mend = "; its history was cut off (a shallow clone)", f"git fetch --unshallow in {path}, or {mend}"
    refused = GateRefused(
        f"the body is {one.verdict}: on disk {one.disk[:12] or 'nothing'}, the soul was last animated by "
        f"{one.witness[:12] or 'nothing'}{cut}", path, mend, f"gate-{one.verdict}",
    )
    refused.facts = report.as_json()
    return refused


def check_generation(federation: Federation, era: int) -> None:
    """Make sure that no restore came since the one that made ``era``, 0 for none.

    The era, not the generation that the gate saw: while a restore stages its data, whoever deploys imprints
    generations as high as the one that the restore was to make.

    Raises:
        GateUnsure: one did, or is open.
        Away: the database cannot be reached.
    """
    refuse_open_restore(federation)
    with connect(federation.settings.need("database_url")) as connection:
        known = witness.read(connection)
    if known is None or known.restored > era:
        raise GateUnsure("a restore brought back another pair since this process passed the gate", "witness",
                         "start the process again", "generation-changed")


def present(federation: Federation, restored: int) -> Present:
    """Return which messages belong to the pair that the gate let in; ``restored`` is the report's.

    Raises:
        GateUnsure: the restore that made it has not yet written its line of the lineage.
        Away: the vault cannot be reached.
    """
    # In this order: a restore writes that line before it closes its journal.
    is_open = journal.read(federation.vault) is not None
    lineage = list(federation.vault.lineage())
    if is_open and eras.present(lineage, 0).era < restored:
        raise GateUnsure(f"the restore that made generation {restored} has not ended", str(federation.vault.root),
                         "lych-checkpoint recover", "restore-open")
    return eras.present(lineage, restored)


def refuse_open_restore(federation: Federation) -> None:
    """Raise `GateUnsure` while a restore has displaced something and not ended."""
    restore = journal.read(federation.vault)
    if restore is not None and restore.phase in _OPEN_PHASES:
        raise GateUnsure(f"a restore is {restore.phase}", str(federation.vault.root), "lych-checkpoint recover",
                         "restore-open")


def _refuse_unless(aligned: bool, known: Witness) -> None:
    if not aligned:
        raise GateUnsure(f"a restore (generation {known.generation}) has not brought back this body yet", "witness",
                         "lych-checkpoint recover", "restore-open")


def _refuse_other(federation: Federation, known: Witness) -> None:
    if known.uuid != federation.uuid:
        raise GateRefused("vault and database belong to different federations", str(federation.vault.root),
                          "set LYCH_VAULT or LYCH_DATABASE_URL to the pair that belongs together", "gate-foreign")


def _first_witness(federation: Federation, connection: Connection) -> Witness:
    last = federation.vault.last_lineage()
    if last is not None and int(last["generation"]) > 0:
        raise GateRefused(
            f"the soul has no witness, yet the vault knows generation {last['generation']}: these data are others",
            "database", "lych-checkpoint restore latest", "gate-no-witness",
        )
    return witness.init(connection, federation.settings.federation)


def _is_rewound(known: Witness, report: Report, last: dict[str, Any] | None) -> bool:
    return last is not None and report.verdict != "aligned" and known.generation < int(last["generation"])


def _rewound(known: Witness, report: Report, last: dict[str, Any] | None) -> GateRefused:
    refused = GateRefused(
        f"the data are rewound: their generation is {known.generation}, the vault knows "
        f"{last['generation'] if last else 'none'}; somebody restored the data alone", "database",
        "lych-checkpoint restore latest", "gate-rewound",
    )
    refused.facts = {**report.as_json(), "verdict": "rewound"}
    return refused


def _refuse_foreign(known: Witness, soul: str, last: dict[str, Any] | None) -> None:
    """Refuse a vault from before the last restore, and data that are another copy than the one the vault knows.

    Every restore writes its generation and its database into the lineage, so neither can come about by a crash.
    """
    if known.restored > (int(last["generation"]) if last else 0):
        raise GateRefused(
            f"the vault is older than these data: a restore made their generation {known.restored}, the vault knows "
            f"{last['generation'] if last else 'none'}", "vault",
            "bring the newer vault back, or `lych-checkpoint gate --adopt REASON`", "gate-vault-older")
    if last is not None and not same(soul, last.get("soul", soul)):
        raise GateRefused(
            f"these data are a copy: cluster/database {soul}, the vault knows {last['soul']}", "database",
            "point LYCH_DATABASE_URL at the original, `lych-checkpoint restore latest`, or, if this copy is meant to "
            "live on alone, `lych-checkpoint gate --adopt REASON`", "gate-copied")


def _refuse_slept(federation: Federation, report: Report) -> None:
    """Refuse a body that a restore took back while this host was away: it is no upgrade."""
    commits = {path: one.disk for path, one in report.repos.items() if one.disk}
    try:
        signature, _ = body.pins(federation.found())
    except Refused:
        signature = ""  # a repository cannot be read: the report says so
    if hosts.has_slept(federation.settings.root, federation.vault.lineage(), commits, signature):
        unsure = GateUnsure("a restore took this body back while this host was away", str(federation.settings.root),
                            "start a worker here: it checks out what the restore brought back", hosts.SLEPT)
        unsure.facts = report.as_json()
        raise unsure


def _fingerprint(federation: Federation) -> dict[str, str]:
    settings = federation.settings
    return body.fingerprint(settings.root, settings.core, settings.extensions)
