"""How a verb answers: one JSON document or plain text on stdout, all else on stderr, and the exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from lych_checkpoint.errors import CheckpointError, SettingError
from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
from lych_checkpoint.tasks import SCHEMA

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


def federation() -> Federation:
    """Open the federation by the app's settings, or by the environment where there is no app."""
    plugin = getattr(app(), "lych", None)
    return plugin.federation() if plugin is not None else Federation(Settings.load())


def app() -> Any:
    """Return the Celery app that the command was given, or None."""
    return click.get_current_context().meta.get("lych.app")


def say(document: dict[str, Any], text: str | Sequence[str]) -> None:
    """Print the answer: the document with ``--json``, else the text."""
    if click.get_current_context().meta.get("lych.json"):
        click.echo(json.dumps({"schema": SCHEMA, **document}, ensure_ascii=False))
    else:
        click.echo(text if isinstance(text, str) else "\n".join(text))


def ending(run: Callable[[], Any], *, as_json: bool) -> int:
    """Run a verb and return the exit code; an error is answered here and nowhere else."""
    try:
        run()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except CheckpointError as error:
        _fail(error, as_json=as_json)
        return error.exit_code
    except click.ClickException as error:
        _fail(SettingError(error.format_message(), "command line", "lych-checkpoint --help", "usage"),
              as_json=as_json)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        _fail(CheckpointError("interrupted, and cleaned up", code="interrupted"), as_json=as_json)
        return EXIT_INTERRUPTED
    except Exception as error:  # a program's outermost door: no traceback unless asked for
        logging.getLogger(__name__).debug("An error that nobody foresaw", exc_info=True)
        _fail(CheckpointError(f"{type(error).__name__}: {error}", "lych_checkpoint itself",
                              "run it again with --debug and report what it prints", "internal"), as_json=as_json)
        return 1
    return 0


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> list[str]:
    """Return lines with aligned columns."""
    texts = [list(head), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def log_to_stderr(*, debug: bool) -> None:
    """Send the log where it does not disturb the answer."""
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if debug else logging.WARNING,
                            format="%(levelname)s %(message)s")


def _fail(error: CheckpointError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "error": error.as_json()}, ensure_ascii=False))
    else:
        click.echo(f"lych-checkpoint: {error.where + ': ' if error.where else ''}{error.what}", err=True)
        if error.mend:
            click.echo(f"mend it with: {error.mend}", err=True)
    for note in getattr(error, "__notes__", []):
        click.echo(note, err=True)
