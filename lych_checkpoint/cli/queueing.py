"""The verbs for messages that a restore left without a future: queue list, release, drop."""

from __future__ import annotations

import click

from lych_checkpoint.cli import answer
from lych_checkpoint.cli.words import agree


@click.group("queue", no_args_is_help=False)
def queue_command() -> None:
    """Look after the messages that workers put aside after a restore."""


@queue_command.command("list")
def _list_command() -> None:
    """List them, oldest first."""
    from lych_checkpoint import quarantine

    found = quarantine.listed(answer.federation())
    rows = [(one["id"], one["task"], one["queue"], one["at"][:19], "yes" if one["present"] else "-", one["why"])
            for one in found]
    answer.say({"messages": found}, answer.table(rows, ("id", "task", "queue", "put aside", "present again", "why")))


@queue_command.command("release")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--present", is_flag=True, help="Those that belong to the present again, as after an undo.")
def _release_command(*, ids: tuple[str, ...], every: bool, present: bool) -> None:
    """Publish messages again where they were published first, as of now."""
    from lych_checkpoint import quarantine

    app = answer.app()
    if [bool(ids), every, present].count(True) != 1:
        raise click.UsageError("name messages, or say --all or --present")
    if app is None:
        raise click.UsageError("the app knows the broker: celery -A APP checkpoint queue release")
    done = quarantine.release(answer.federation(), ids, present=present, app=app, stamp=app.lych.stamper.now)
    answer.say({"released": done}, [f"released {len(done)}", *done])


@queue_command.command("drop")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def _drop_command(*, ids: tuple[str, ...], every: bool, yes: bool) -> None:
    """Forget messages for good."""
    from lych_checkpoint import quarantine

    if bool(ids) == every:
        raise click.UsageError("name messages, or say --all")
    agree(f"Drop {'all messages' if every else ', '.join(ids)} for good?", yes=yes)
    done = quarantine.drop(answer.federation(), ids)
    answer.say({"dropped": done}, [f"dropped {len(done)}", *done])
