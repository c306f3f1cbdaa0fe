"""The two doors for people: `lych-checkpoint VERB` and `celery -A app checkpoint VERB`.

Every `celery` command imports this module, so it imports nothing of ours before a verb is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

#: verb → the room that has it.
_VERBS = {
    "create": "making", "freeze": "making", "thaw": "making", "status": "making",
    "list": "looking", "show": "looking", "diff": "looking", "verify": "looking", "gate": "looking",
    "doctor": "looking",
    "init": "changing", "restore": "changing", "recover": "changing", "rehearse": "changing",
    "queue": "queueing",
}
_JSON = "lych.json"


class Verbs(click.Group):
    """The group of all verbs; each is imported when it is asked for, and every error leaves through one place."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the verbs' names."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one verb."""
        if cmd_name not in _VERBS:
            return None
        room = importlib.import_module(f"lych_checkpoint.cli.{_VERBS[cmd_name]}")
        command: click.Command = getattr(room, cmd_name + "_command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `--json` wherever it stands, so that even a mistyped option is answered in JSON."""
        ctx.meta[_JSON] = "--json" in args
        try:
            return super().parse_args(ctx, [one for one in args if one != "--json"])
        except click.UsageError as error:
            from lych_checkpoint.cli import answer

            ctx.exit(answer.failed(answer.misused(error), as_json=ctx.meta[_JSON]))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb and end with its exit code."""
        from lych_checkpoint.cli import answer

        ctx.exit(answer.ending(lambda: click.Group.invoke(self, ctx), as_json=ctx.meta[_JSON]))


@click.group(name="checkpoint", cls=Verbs, no_args_is_help=False)
@click.option("--debug", is_flag=True, help="Log everything to stderr, and show tracebacks.")
@click.pass_context
def celery_command(ctx: click.Context, /, *, debug: bool = False, **_preload: Any) -> None:
    """Seal code and data of this system as one pair, and bring both back."""
    from lych_checkpoint.cli import answer

    answer.log_to_stderr(debug=debug)
    ctx.meta["lych.app"] = getattr(ctx.obj, "app", None)
    ctx.meta["lych.debug"] = debug


main = celery_command
