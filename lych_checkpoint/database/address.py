"""What a libpq URL says, and URLs made from it. Nothing here connects."""

from __future__ import annotations

import getpass
import os
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lych_checkpoint.errors import SettingError

#: What only makes sense for the server that the URL names, not for a private socket.
_NETWORK = ("password", "passfile", "hostaddr", "sslmode", "sslrootcert", "sslcert", "sslkey", "channel_binding",
            "require_auth", "gssencmode", "target_session_attrs", "options", "service")


def parts(url: str) -> dict[str, Any]:
    """Return the URL's parts by libpq's names.

    Raises:
        SettingError: it is no libpq URL.
    """
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.Error as error:
        raise SettingError(f"is no libpq URL: {str(error).splitlines()[0]}", "LYCH_DATABASE_URL",
                           "write it as postgresql://user@host/database") from error


def host_and_name(url: str) -> str:
    """Return ``host/database`` for messages; never a password."""
    return f"{parts(url).get('host') or os.environ.get('PGHOST') or 'local'}/{name_of(url)}"


def name_of(url: str) -> str:
    """Return the database's name, by libpq's rules where the URL has none."""
    said = parts(url)
    user = said.get("user") or os.environ.get("PGUSER") or getpass.getuser()
    return str(said.get("dbname") or os.environ.get("PGDATABASE") or user)


def is_local(url: str) -> bool:
    """Whether the URL leads to this machine: a socket or a loopback address."""
    said = parts(url)
    host = str(said.get("hostaddr") or said.get("host") or os.environ.get("PGHOST") or "")
    return host in ("", "localhost", "::1") or host.startswith(("/", "@", "127."))


def with_name(url: str, name: str) -> str:
    """Return the address of another database of the same server."""
    return make_conninfo(url, dbname=name)


def without_password(url: str, application_name: str) -> tuple[str, dict[str, str]]:
    """Return an address fit for an argv, which every user can read, and the environment that carries the password."""
    said = parts(url)
    password = said.pop("password", None)
    said["application_name"] = application_name
    return make_conninfo("", **said), {"PGPASSWORD": str(password)} if password else {}


def on_socket(url: str, directory: str, port: int) -> str:
    """Return the address of the same database and user at a private server's socket, which asks for no password."""
    said = {name: value for name, value in parts(url).items() if name not in _NETWORK}
    said.setdefault("user", os.environ.get("PGUSER") or getpass.getuser())
    return make_conninfo("", **{**said, "dbname": name_of(url), "host": directory, "port": port})
