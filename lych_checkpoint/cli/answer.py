"""How a verb answers: one JSON document or plain text on stdout, all else on stderr, and the exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from lych_checkpoint import progress
from lych_checkpoint.errors import CheckpointError, SettingError
from lych_checkpoint.records import SCHEMA

if TYPE_CHECKING:
    from lych_checkpoint.federation import Federation
    from lych_checkpoint.settings import Settings

EXIT_INTERRUPTED = 130


def settings() -> Settings:
    """Read the app's settings, or the environment's where there is no app."""
    from lych_checkpoint.settings import Settings

    given = app()
    found: Settings = given.lych.settings if given is not None else Settings.load()
    return found


def federation() -> Federation:
    """Open the federation by those settings."""
    from lych_checkpoint.federation import Federation

    return Federation(settings())


def app() -> Any:
    """Return the Celery app that the command was given, or None; one without `install` is none of ours."""
    given = click.get_current_context().meta.get("lych.app")
    return given if getattr(given, "lych", None) is not None else None


def say(document: dict[str, Any], text: str | Sequence[str]) -> None:
    """Print the answer: the document with ``--json``, else the text."""
    if click.get_current_context().meta.get("lych.json"):
        _out(json.dumps({"schema": SCHEMA, **document}))
    else:
        _out(text if isinstance(text, str) else "\n".join(text))


def ending(run: Callable[[], Any], *, as_json: bool) -> int:
    """Run a verb and return the exit code; an error is answered here and nowhere else."""
    try:
        run()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except CheckpointError as error:
        return failed(error, as_json=as_json)
    except click.ClickException as error:
        return failed(misused(error), as_json=as_json)
    except (KeyboardInterrupt, click.Abort) as error:
        interrupted = CheckpointError("interrupted, and cleaned up", code="interrupted")
        for note in getattr(error, "__notes__", []):
            interrupted.add_note(note)
        failed(interrupted, as_json=as_json)
        return EXIT_INTERRUPTED
    except Exception as error:  # a program's outermost door: no traceback unless asked for
        logging.getLogger(__name__).debug("An error that nobody foresaw", exc_info=True)
        return failed(CheckpointError(
            f"{type(error).__name__}: {error}", "lych_checkpoint itself",
            "run it again with --debug and report what it prints", "internal"), as_json=as_json)
    return 0


def misused(error: click.ClickException) -> SettingError:
    """Return what click says of the command line as an error of ours."""
    return SettingError(error.format_message(), "command line", "lych-checkpoint --help", "usage")


def failed(error: CheckpointError, *, as_json: bool) -> int:
    """Answer with an error; return its exit code."""
    if as_json:
        _out(json.dumps({"schema": SCHEMA, "error": error.as_json(), **error.facts}))
    else:
        where = f"{error.where}: " if error.where else ""
        click.echo(harmless(f"lych-checkpoint: {where}{error.what}"), err=True)
        if error.mend:
            click.echo(harmless(f"mend it with: {error.mend}"), err=True)
    for note in getattr(error, "__notes__", []):
        click.echo(harmless(note), err=True)
    return error.exit_code


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> list[str]:
    """Return lines with aligned columns."""
    texts = [list(head), *[[harmless(str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def harmless(text: str) -> str:
    """Return one line that moves no cursor and hides nothing, whoever wrote ``text``."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
                   for char in text)


def log_to_stderr(*, debug: bool) -> None:
    """Send the log where it does not disturb the answer; to a person, with word of what takes long."""
    if sys.stderr.isatty():
        logging.getLogger(progress.__name__).setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if debug else logging.WARNING,
                            format="%(levelname)s %(message)s")


def _out(text: str) -> None:
    """Write the answer; what the terminal cannot show is escaped, and a reader who left is no failure of ours."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain once more at its end
