"""`settings.json`: what a dump of one database forgets."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lych_checkpoint.database import Connection, catalogue, extensions, portrait, roles
from lych_checkpoint.database.extensions import Extension
from lych_checkpoint.database.portrait import Portrait
from lych_checkpoint.database.roles import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """The database without its content, the roles that it names, and its extensions in the order of their making."""

    portrait: Portrait
    roles: tuple[Role, ...]
    extensions: tuple[Extension, ...]

    @classmethod
    def read(cls, connection: Connection, database: str) -> Self:
        """Read it in the database itself, as of the connection's transaction."""
        oid = catalogue.oid_of(connection, database)
        return cls(portrait=portrait.read(connection, oid), roles=roles.read(connection, oid),
                   extensions=tuple(extensions.installed(connection)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. One without roles and extensions is older than those and has none.

        Raises:
            Damage: fields are missing or unknown.
            ValueError: it is no JSON.
        """
        record: dict[str, Any] = json.loads(path.read_text())
        named, made = record.pop("roles", []), record.pop("extensions", [])
        return cls(portrait=Portrait.of(record), roles=tuple(Role.of(one) for one in named),
                   extensions=tuple((name, version, schema) for name, version, schema in made))

    def write(self, path: Path) -> None:
        """Write the file, durably, for its owner alone."""
        record = {**self.portrait.as_json(), "roles": [one.as_json() for one in self.roles],
                  "extensions": self.extensions}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(record, indent=1, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())
