"""One settings model. Environment `LYCH_*` over `app.conf.lych_*` over a TOML file over defaults.

The file is the one that ``LYCH_CONFIG`` names, else ``lych.toml`` in the working directory. Unknown names and bad
values fail at start with the field's name; names that begin with `LYCH_DEMO_`, `LYCH_TEST_` and `LYCH_BENCH_` are
free for others.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lych_checkpoint.errors import SettingError

_FREE_PREFIXES = ("LYCH_DEMO_", "LYCH_TEST_", "LYCH_BENCH_")
_CONFIG = "LYCH_CONFIG"


class Settings(BaseSettings):
    """All that a user can set. Durations are seconds."""

    model_config = SettingsConfigDict(env_prefix="LYCH_", extra="forbid", frozen=True, env_ignore_empty=True)

    federation: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the whole: all workers and repositories of one system."""
    redis_url: str = ""
    """Where lock, lease and roster live; the app's broker if that is a Redis."""
    database_url: str = ""
    """The soul: a libpq URL."""
    root: Path = Path()
    """The directory that holds core and extensions."""
    core: str = "core"
    """Path of the core repository below the root; `.` for the root itself."""
    extensions: tuple[str, ...] = ("extensions/*",)
    """Paths or globs below the root; a leading `!` leaves out."""
    vault: Path | None = None
    """Where checkpoints live; `~/.local/state/lych/<federation>` if unset."""
    driver: Literal["auto", "btrfs", "reflink", "pitr", "dump"] = "auto"
    """How the soul is captured; a named one is required, never replaced silently."""
    pgdata: Path | None = None
    """The server's data directory, for physical drivers; asked of the server if unset."""
    pg_bin: Path | None = None
    """Directory of pg_dump, pg_restore, pg_ctl; PATH if unset."""
    postgres_control: str = "pg_ctl"
    """How the server is stopped and started: `pg_ctl`, `systemd:UNIT`, or {"start": [...], "stop": [...]}."""
    helper: tuple[str, ...] = ()
    """argv that runs as PGDATA's owner where this process does not."""
    dirty: Literal["refuse", "capture"] = "refuse"
    """What `create` does with a dirty repository."""
    dirty_limit_bytes: int = Field(default=256 << 20, gt=0)
    """What changed and untracked files of one repository may hold together: more is refused by `capture`, and moved
    aside, not captured, by a restore."""
    dump_jobs: int = Field(default=1, ge=1, le=64)
    """How many connections `dump` reads and restores by. More than one: a queued ALTER or TRUNCATE fails the dump."""
    writers: Literal["refuse", "fence", "note"] = "refuse"
    """What `create` does about writers outside Celery."""
    ack_timeout_s: float = Field(default=5.0, gt=0, le=600)
    """How long workers may take to close their barrier."""
    gone_after_s: float = Field(default=300.0, ge=2)
    """Silence after which a worker of another host counts as gone."""
    drain_timeout_s: float = Field(default=60.0, gt=0)
    """How long running tasks may take to end."""
    drain: Literal["abort", "wait"] = "abort"
    """What becomes of a freeze when they take longer: it ends, or it waits for as long as they run."""
    lease_s: float = Field(default=10.0, ge=1, le=600)
    """A freeze never outlives its coordinator by more than this."""
    queue: str = ""
    """Queue of the `checkpoint.*` tasks; the app's own if unset."""
    schedule: str = ""
    """When beat creates checkpoints: seconds, or five crontab fields."""
    keep: dict[str, int] = Field(default_factory=dict)
    """Retention: how many hourly, daily, weekly, monthly, yearly checkpoints to keep."""
    rebirth: Literal["refuse", "auto"] = "refuse"
    """What the gate does about a body that is behind."""
    rebuild: tuple[str, ...] = ()
    """argv that rebuilds the environment after a checkout; run in the root, no shell."""
    rebuild_timeout_s: float = Field(default=600.0, gt=0)
    """How long that may take."""
    rehearse: tuple[str, ...] = ()
    """argv that checks a rehearsed pair; LYCH_ROOT and LYCH_DATABASE_URL lead to it, no shell."""
    rehearse_timeout_s: float = Field(default=600.0, gt=0)
    """How long that may take."""
    queue_policy: Literal["quarantine", "keep"] = "quarantine"
    """What happens to messages of a reverted future."""
    signing_key: Path | None = None
    """Ed25519 key, PEM; `<vault>/keys/ed25519.pem` if unset."""

    @field_validator("root", "vault", "pgdata", "pg_bin", "signing_key")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None else value.expanduser().absolute()

    @field_validator("keep")
    @classmethod
    def _known_periods(cls, value: dict[str, int]) -> dict[str, int]:
        odd = set(value) - {"last", "hourly", "daily", "weekly", "monthly", "yearly"}
        if odd:
            raise ValueError(f"unknown period {min(odd)!r}")
        return value

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic's hook
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @classmethod
    def load(cls, app_conf: Mapping[str, Any] | None = None) -> Self:
        """Read all sources.

        Args:
            app_conf: the app's settings; only names that begin with ``lych_`` count. ``broker_url`` fills
                ``redis_url`` where that is unset and the broker is a Redis.

        Raises:
            SettingError: a name is unknown, a value is bad, or a required one is missing.
        """
        _refuse_unknown_environment(set(cls.model_fields))
        conf = dict(app_conf or {})
        lower = {**_read_file(), **{name[5:]: value for name, value in conf.items() if name.startswith("lych_")}}
        unknown = sorted(set(lower) - set(cls.model_fields))
        if unknown:
            raise SettingError(f"unknown setting {unknown[0]!r}", f"lych_{unknown[0]}", "see docs/settings.md")
        try:
            settings = cls(**lower)
        except ValidationError as error:
            first = error.errors()[0]
            name = "LYCH_" + str(first["loc"][0]).upper() if first["loc"] else "settings"
            what = "is required and not set" if first["type"] == "missing" else first["msg"]
            raise SettingError(what, name, f"set {name}") from error
        except ValueError as error:  # a value that should be JSON is not; pydantic names the field in prose
            found = re.search(r'field "(\w+)"', str(error))
            name = "LYCH_" + found[1].upper() if found else "settings"
            raise SettingError("is not valid JSON", name, f"set {name} to JSON") from error
        broker = str(conf.get("broker_url") or "")
        if not settings.redis_url and broker.startswith(("redis://", "rediss://", "redis+socket://", "unix://")):
            settings = settings.model_copy(update={"redis_url": broker})
        return settings

    def need(self, name: str) -> str:
        """Return the text setting ``name``.

        Raises:
            SettingError: it is not set.
        """
        value = str(getattr(self, name) or "")
        if not value:
            raise SettingError("is required and not set", f"LYCH_{name.upper()}", f"set LYCH_{name.upper()}")
        return value

    def environment(self) -> dict[str, str]:
        """Return all settings as environment variables, for a process that must not load the app."""
        return {
            "LYCH_" + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in self.model_dump(mode="json").items() if value is not None
        }

    @property
    def vault_path(self) -> Path:
        """The vault's directory, whether set or by default."""
        return self.vault or Path("~/.local/state/lych").expanduser() / self.federation

    @property
    def key_path(self) -> Path:
        """The signing key's file, whether set or by default."""
        return self.signing_key or self.vault_path / "keys" / "ed25519.pem"


def _refuse_unknown_environment(known: set[str]) -> None:
    for name in sorted(os.environ):
        if not name.startswith("LYCH_") or name.startswith(_FREE_PREFIXES) or name == _CONFIG:
            continue
        if name[5:].lower() not in known:
            raise SettingError(f"unknown setting {name}", name, f"unset {name}")


def _read_file() -> dict[str, Any]:
    named = os.environ.get(_CONFIG)
    path = Path(named) if named else Path("lych.toml")
    if not named and not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"cannot be read: {error}", str(path), f"correct {path}") from error
