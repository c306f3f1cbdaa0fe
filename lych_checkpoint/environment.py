"""What body and soul run with, for `lychd.lock`: Python, PostgreSQL, extensions, migrations."""

from __future__ import annotations

import platform

from lych_checkpoint.database import Connection, connect, speaking, versions
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.manifest import Environment


def read(connection: Connection) -> Environment:
    """Read the environment; Python's version is this process's own. Empty where the server refuses to tell.

    A table that somebody has locked is not waited for: these facts only inform.

    Raises:
        Away: the server is away.
    """
    try:
        with speaking(connection):
            versions.hurry(connection)
            return Environment(
                python=platform.python_version(), postgresql=str(connection.info.server_version // 10_000),
                extensions=versions.extensions(connection), migrations=versions.migrations(connection),
            )
    except Refused:
        return Environment()


def during(url: str, before: Environment) -> tuple[Environment, list[str]]:
    """Return the environment of a freeze that has just ended, and a warning where nobody can say what it was.

    The window has no time to read it: what is the same before the freeze and after it was so in between.
    """
    try:
        with connect(url) as connection:
            after = read(connection)
    except CheckpointError as error:
        return Environment(), [f"extensions and migrations could not be read after the freeze: {error.what}"]
    if after != before or not after.python:
        return Environment(), ["extensions or migrations changed around the freeze, or could not be read"]
    return before, []
