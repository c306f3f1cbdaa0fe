"""The verbs that change what is on disk: init, restore, recover, rehearse."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from lych_checkpoint.cli import answer
from lych_checkpoint.cli.words import agree, plan_lines
from lych_checkpoint.errors import Away, CheckpointError


@click.command("init")
@click.option("--pgdata", type=click.Path(path_type=Path), default=None,
              help="Make only this: a Btrfs subvolume with +C, for an initdb that comes after.")
@click.option("--owner", default=None, help="With --pgdata: who runs the server; else who owns the directory above.")
def init_command(*, pgdata: Path | None, owner: str | None) -> None:
    """Make vault, key and witness; asks nothing, and may be repeated."""
    from lych_checkpoint import setup

    if owner is not None and pgdata is None:
        raise click.UsageError("--owner says whose --pgdata is to be")
    if pgdata is not None:
        document = setup.make_pgdata(pgdata.absolute(), owner)
        state = "made" if document["made"] else "there already"
        answer.say(document, [f"{document['pgdata']} of {document['owner']}: {state}",
                              "next: initdb --data-checksums, as that user"])
        return
    document = setup.init(answer.federation())
    answer.say(document, [f"federation {document['federation']} ({document['uuid']})", f"vault {document['vault']}"])


@click.command("restore")
@click.argument("name", required=False)
@click.option("--undo", is_flag=True, help="Bring back what the last restore displaced.")
@click.option("--dry-run", is_flag=True, help="Say what would come and go; change nothing.")
@click.option("--no-safety", is_flag=True, help="Keep nothing of what goes: there is no undo.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--waiting", hidden=True, help="What the app knew of its queues when it left for this, in JSON.")
def restore_command(*, name: str | None, undo: bool, dry_run: bool, no_safety: bool, yes: bool,
                    waiting: str | None) -> None:
    """Bring body and soul of a checkpoint back, both or neither."""
    if (name is None) != undo:
        raise click.UsageError("name a checkpoint, or say --undo")
    asked = json.loads(waiting) if waiting else _waiting() if dry_run or not yes else None
    if not dry_run:
        _refuse_strangers()
        _leave_the_body("restore", *[name] * (name is not None), *["--undo"] * undo, *["--no-safety"] * no_safety,
                        *["--yes"] * yes, *["--waiting", json.dumps(asked)] * (asked is not None))
    from lych_checkpoint import restore
    from lych_checkpoint.plan import plan as plan_of

    federation = answer.federation()
    plan = plan_of(federation, name or restore.newest_safety(federation), asked)
    if dry_run:
        answer.say(plan, plan_lines(plan))
        return
    for line in [] if yes else plan_lines(plan):
        click.echo(line, err=True)
    agree(f"Restore {plan['checkpoint']}?", yes=yes)
    document = restore.restore(federation, plan["checkpoint"], safety=not no_safety)
    answer.say(document, [
        f"restored {document['checkpoint']}, generation {document['generation']}",
        f"the displaced pair is kept as {document['safety']}" if document["safety"] else "nothing displaced is kept",
        ", ".join(f"{phase} {took_ms:.0f} ms" for phase, took_ms in document["phases_ms"].items()),
    ])


@click.command("recover")
def recover_command() -> None:
    """End a restore that was cut off, on the new pair or on the old one."""
    _leave_the_body("recover")
    from lych_checkpoint import restore

    document = restore.recover(answer.federation())
    answer.say(document, "nothing is open" if document["recovered"] is None else
               f"recovered the {document['recovered']} pair of restore {document['checkpoint']}")


@click.command("rehearse")
@click.argument("name", default="latest")
def rehearse_command(*, name: str) -> None:
    """Bring a checkpoint back aside, check it as a worker would, and remove it again."""
    from lych_checkpoint import rehearsal

    document = rehearsal.rehearse(answer.federation(), name)
    answer.say(document, [
        f"rehearsed {document['checkpoint']} in {document['took_ms'] / 1000:.1f} s",
        *[f"{part}: {document[part]}" for part in ("gate", "amcheck", "command")],
    ])


def _waiting() -> dict[str, int] | None:
    """Return how many messages wait by queue; None without an app, or where its broker does not answer."""
    if answer.app() is None:
        return None
    from lych_checkpoint import queues

    try:
        return queues.waiting(answer.app())
    except CheckpointError as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


def _refuse_strangers() -> None:
    """Look for workers that no freeze would reach, while the app is known; the restore's own process has none.

    A broker that is away stops no restore: what consumes from it then is not known, and the log says so.
    """
    if answer.app() is None:
        return
    try:
        answer.federation().check_for_strangers(answer.app())
    except Away as error:
        logging.getLogger(__name__).warning("Whether workers run that would not freeze is not known: %s", error)


def _leave_the_body(*argv: str | None) -> None:
    """Go on in a program that imports nothing of the body, which is about to be replaced."""
    if answer.app() is None:
        return
    said = click.get_current_context().meta
    options = [*["--json"] * bool(said.get("lych.json")), *["--debug"] * bool(said.get("lych.debug"))]
    sys.stdout.flush()
    _become([sys.executable, "-P", "-m", "lych_checkpoint", *options, *map(str, argv)],
            {**os.environ, **answer.settings().environment()})


def _become(argv: list[str], environment: dict[str, str]) -> NoReturn:
    os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is meant
