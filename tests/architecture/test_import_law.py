"""Imports point down only, each outside world is imported in one place, and a room stays a room."""

from __future__ import annotations

import graphlib
import statistics
import sys
from pathlib import Path

import pytest

from tests.architecture import rooms
from tests.architecture.rooms import Import

#: From the doors down to the ground. A room imports rooms of lower tiers only.
TIERS = (
    {"__main__", "__init__"},
    {"cli", "plugin", "evolution", "helper"},                                                  # doors
    {"tasks"},                                                                       # the door that the plugin opens
    {"rebirth", "rehearsal", "comparison"},                                          # verbs that run another verb
    {"plan"},
    {"coordinator", "restore", "gate", "status", "doctor", "setup", "quarantine"},   # verbs
    {"inspection", "restoration", "stamping"},                                       # what several verbs do
    {"federation"},                                                                  # what all verbs start from
    {"soul", "hosts"},                                                               # parts …
    {"window", "rebuild"},
    {"freeze", "worker", "body", "seal", "journal", "witness", "broadcast", "queues", "environment"},
    {"drivers"},
    {"lease", "database", "repository", "vault"},                                    # tools: one outside world each
    {"ownership"},
    {"process"},
    {"manifest"},                                                                    # ground
    {"records", "settings", "eras", "progress"},
    {"errors"},
)
#: Outside worlds and the only places that may import them; a name with a slash is one file.
WORLDS = {
    "psycopg": {"database"},
    "git": {"repository"},
    "redis": {"lease"},
    "subprocess": {"process"},
    "pydantic": {"settings"},
    "pydantic_settings": {"settings"},
    "cryptography": {"seal"},
    "tomli_w": {"manifest"},
    "tomllib": {"manifest", "settings", "helper"},
    "click": {"cli"},
    "celery": {"plugin", "tasks", "evolution", "worker", "broadcast"},
    "kombu": {"worker", "broadcast"},
    "billiard": {"worker"},
    # Kernel calls that Python has no name for.
    "ctypes": {"body", "drivers/kernel.py", "process/running.py"},
}
#: Standard ones that are nobody's business here: another door to a world, or a habit with hidden costs.
FORBIDDEN = {"multiprocessing", "asyncio", "pickle", "shelve", "sqlite3", "http", "ftplib", "telnetlib", "xmlrpc",
             "pty"}
LONGEST, MEDIAN = 300, 120
_TIER = {room: number for number, tier in enumerate(TIERS) for room in tier}


def climbing(found: list[Import]) -> list[str]:
    """Return the imports that do not point down."""
    return [
        str(one) for one in found
        if one.top == rooms.PACKAGE and rooms.room_of_module(one.module) != rooms.room_of_file(one.file)
        and _TIER[rooms.room_of_module(one.module)] <= _TIER[rooms.room_of_file(one.file)]
    ]


def astray(found: list[Import]) -> list[str]:
    """Return the imports of outside worlds from places that are not theirs, and of worlds without a place."""
    wrong = []
    for one in found:
        if one.top == rooms.PACKAGE:
            continue
        places = WORLDS.get(one.top)
        if places is None:
            if one.top in FORBIDDEN or one.top not in sys.stdlib_module_names:
                wrong.append(str(one))
        elif not places & {rooms.room_of_file(one.file), one.file}:
            wrong.append(str(one))
    return wrong


def cycle(found: list[Import], root: Path = rooms.ROOT) -> list[str]:
    """Return one cycle of modules, or nothing."""
    names = {path.relative_to(root).as_posix(): rooms.name_of(path, root) for path in rooms.files(root)}
    graph: dict[str, set[str]] = {}
    for one in found:
        if one.top == rooms.PACKAGE and one.module != names[one.file]:
            graph.setdefault(names[one.file], set()).add(one.module)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_its_tier() -> None:
    there = {rooms.room_of_file(path.relative_to(rooms.ROOT).as_posix()) for path in rooms.files()}
    assert there == set(_TIER)


def test_imports_point_down() -> None:
    assert climbing(rooms.imports()) == []


def test_each_outside_world_is_imported_in_its_place() -> None:
    assert astray(rooms.imports()) == []


def test_modules_have_no_cycle() -> None:
    assert cycle(rooms.imports()) == []


def test_files_are_rooms() -> None:
    lengths = {path.relative_to(rooms.ROOT).as_posix(): len(path.read_text().splitlines()) for path in rooms.files()}
    assert {file: length for file, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) < MEDIAN


@pytest.mark.parametrize(("file", "text"), [
    ("vault/directory.py", "from lych_checkpoint import gate"),
    ("vault/directory.py", "def late():\n    import lych_checkpoint.lease.lock"),
    ("body/scans.py", "from lych_checkpoint.witness import Witness"),
    ("errors.py", "from lych_checkpoint.records import digest"),
    ("coordinator.py", "from lych_checkpoint.restore import restore"),
    ("coordinator.py", "import psycopg"),
    ("gate.py", "def late():\n    from redis.client import Redis"),
    ("soul.py", "import subprocess"),
    ("vault/files.py", "import requests"),
    ("vault/files.py", "from multiprocessing import Pool"),
    ("drivers/dump.py", "import ctypes"),
])
def test_the_law_sees_a_breach(tmp_path: Path, file: str, text: str) -> None:
    for tier in TIERS:
        for room in tier:
            (tmp_path / f"{room}.py").write_text("")
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "lock.py").write_text("")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    found = rooms.imports(tmp_path)
    assert len(climbing(found) + astray(found)) == 1


def test_the_law_sees_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "body").mkdir()
    (tmp_path / "body" / "one.py").write_text("from lych_checkpoint.body import two")
    (tmp_path / "body" / "two.py").write_text("def late():\n    from lych_checkpoint.body.one import x")
    assert cycle(rooms.imports(tmp_path), tmp_path)
