"""The demo's soul and its two evolutions: what a daemon might do to itself, here written down beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ACCOUNTS, START = 101, 1000
SCHEMA = f"""
create table accounts (id int primary key, balance bigint not null, version text not null);
create table transfers (
  id bigint generated always as identity primary key,
  source int not null, target int not null, coins bigint not null, version text not null
);
insert into accounts select n, {START}, 'made by hand' from generate_series(0, {ACCOUNTS - 1}) n;
"""
BODY = Path(__file__).parent / "body"
REPOSITORIES = ("core", "extensions/alms", "extensions/tithe")


@dataclass(frozen=True, slots=True)
class Evolution:
    """New code in two repositories and a migration that it needs.

    ``organ`` is the extension that changes, ``mark`` what its rows' version then says, ``column`` the new column of
    table transfers that it fills.
    """

    files: dict[str, str]
    statements: list[str]
    organ: str
    mark: str
    column: str


def _evolved(organ: str, version: int, column: str, kind: str, value: str) -> Evolution:
    core, organ_file = "core/daemon.py", f"extensions/{organ}/{organ}.py"
    code = (BODY / organ_file).read_text()
    code = _replaced(code, "VERSION = 1", f"VERSION = {version}")
    code = _replaced(code, "insert into transfers (", f"insert into transfers ({column}, ")
    code = _replaced(code, "version) values (", f"version) values ({value}, ")
    return Evolution(
        files={core: _replaced((BODY / core).read_text(), "VERSION = 1", f"VERSION = {version}"), organ_file: code},
        statements=[f"alter table transfers add column {column} {kind}"],
        organ=organ, mark=f"core {version}, {organ} {version}", column=column,
    )


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"{old!r} must be there once to be replaced")
    return text.replace(old, new)


def first() -> Evolution:
    """Return the evolution that is undone: the tithe notes a mood."""
    return _evolved("tithe", 2, "mood", "text", "'generous'")


def second() -> Evolution:
    """Return the one that follows the restore, along another path: alms note a weight."""
    return _evolved("alms", 3, "weight", "int", "7")
