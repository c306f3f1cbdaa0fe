"""The verbs around a freeze: create, freeze, thaw, status."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from lych_checkpoint.cli import answer
from lych_checkpoint.cli.words import Duration, Label, Tag
from lych_checkpoint.errors import CheckpointError, FreezeError, Refused

if TYPE_CHECKING:
    from lych_checkpoint.federation import Federation

#: How often the outcome of a task is looked for.
_FOLLOW_S = 0.05


@click.command("create")
@click.option("--label", type=Label(), default=None, help="A plain word to name it by.")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--tag", "tags", type=Tag(), multiple=True, help="key=value; repeats.")
@click.option("--here", is_flag=True, help="Coordinate in this process instead of a worker.")
@click.option("--no-wait", is_flag=True, help="Answer 5 at once when something else runs.")
@click.option("--timeout", type=Duration(), default=600.0, help="How long to follow the task; the default is 10m.")
def create_command(*, label: str | None, reason: str, tags: tuple[tuple[str, str], ...], here: bool, no_wait: bool,
                   timeout: float) -> None:
    """Seal a checkpoint."""
    from lych_checkpoint import broadcast, coordinator

    federation, app = answer.federation(), answer.app()
    asked = {"label": label or "", "reason": reason, "tags": dict(tags), "wait": not no_wait}
    if here or app is None or not _task_would_run(federation):
        request = coordinator.Request(label=label or "", reason=reason, tags=dict(tags), wait=not no_wait)
        document = coordinator.create(federation, request, app)
    else:
        document = _follow(federation, broadcast.send(app, "checkpoint.create", asked), timeout)
    window = document["window"]
    answer.say(document, [
        f"sealed {document['id']}" + (f" ({label})" if label else ""),
        f"{len(document['repos'])} repositories, {document['driver']}, {len(document['workers'])} workers",
        "held " + ", ".join(f"{part.removesuffix('_ms')} {took_ms:.0f} ms" for part, took_ms in window.items()),
        *[f"warning: {warning}" for warning in document["warnings"]],
    ])


def _task_would_run(federation: Federation) -> bool:
    """Whether a worker is there that is not frozen for maintenance, behind which the task would wait."""
    from lych_checkpoint.freeze import MAINTENANCE
    from lych_checkpoint.lease import gone, lease, roster

    store = federation.store()
    entries = roster.entries(store)
    living = set(entries) - set(gone.gone(store, entries, federation.settings.gone_after_s))
    standing = lease.read(store)
    return bool(living) and (standing is None or standing.mode != MAINTENANCE)


def _follow(federation: Federation, task_id: str, timeout_s: float) -> dict[str, Any]:
    """Wait for the document that the task leaves in Redis."""
    from lych_checkpoint.lease import requests

    end_s = time.monotonic() + timeout_s
    while (outcome := requests.outcome(federation.store(), task_id)) is None:
        if time.monotonic() > end_s:
            raise FreezeError(f"no worker has ended the task {task_id} within {timeout_s:g} s", "workers",
                              "lych-checkpoint status, or create --here", "no-outcome")
        try:
            time.sleep(_FOLLOW_S)
        except KeyboardInterrupt as error:
            error.add_note(f"the task {task_id} goes on in its worker; `lych-checkpoint status` shows it")
            raise
    if "error" in outcome:
        raise _error(outcome)
    del outcome["schema"]
    return outcome


def _error(outcome: dict[str, Any]) -> CheckpointError:
    """Return the task's error as one of the same exit code."""
    kinds = {kind.exit_code: kind for kind in CheckpointError.__subclasses__()}
    facts = outcome["error"]
    return kinds.get(outcome["exit_code"], Refused)(facts["what"], facts["where"], facts["mend"], facts["code"])


@click.command("freeze")
@click.option("--for", "for_s", type=Duration(), required=True, help="How long, such as 10m.")
@click.option("--reason", required=True, help="Why; `status` shows it.")
def freeze_command(*, for_s: float, reason: str) -> None:
    """Hold all workers still for maintenance; they thaw by themselves when the time is over."""
    from lych_checkpoint import status

    document = status.hold(answer.federation(), for_s, reason, answer.app())
    answer.say(document, _status_lines(document))


@click.command("thaw")
@click.option("--force", is_flag=True, help="Also end the freeze of a running create, which then fails unsealed.")
@click.option("--forget", metavar="NODE", help="Thaw nothing: wait no longer for this worker, which is dead.")
def thaw_command(*, force: bool, forget: str | None) -> None:
    """End the freeze in force; or, with --forget, say that a silent worker of another host is dead."""
    from lych_checkpoint import status

    federation = answer.federation()
    document = (status.forget(federation, forget) if forget
                else status.thaw(federation, force=force, app=answer.app()))
    answer.say(document, _status_lines(document))


@click.command("status")
def status_command() -> None:
    """Show the freeze in force, every worker, and an open restore."""
    from lych_checkpoint import status

    document = status.status(answer.federation())
    answer.say(document, _status_lines(document))


def _status_lines(document: dict[str, Any]) -> list[str]:
    lines = [document["state"]]
    if document["freeze"]:
        one = document["freeze"]
        who = one["coordinator"]
        since = datetime.fromtimestamp(one["since"]).astimezone().isoformat(" ", "seconds")
        lines.append(f"{one['mode']}: {one['reason']}; by pid {who.get('pid')} on {who.get('node')}, since {since}, "
                     f"{one['expires_in_s']:.0f} s left")
    if document["restore"]:
        lines.append(f"restore of {document['restore']['checkpoint']} is {document['restore']['phase']}")
    if document["quarantined"]:
        lines.append(f"{document['quarantined']} messages are put aside: lych-checkpoint queue list")
    rows = [(one["name"], one["pool"], one["state"], one["in_flight"], one["parked"]) for one in document["workers"]]
    return lines + (answer.table(rows, ("worker", "pool", "state", "in flight", "parked")) if rows else [])
