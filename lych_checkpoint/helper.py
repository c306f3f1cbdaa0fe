"""`lych-checkpoint-helper`: captures a cluster for somebody who has not the rights of PGDATA's owner.

It runs as that owner, by sudo, say, and believes nobody: what it works on stands in a file of its own (TOML:
``pgdata``, ``database_url``, ``pg_bin``), which only root or its own user may write. From its caller it takes fixed
verbs, names of drivers and checkpoints, and no path. When its caller hangs up it takes back what was not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import stat
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, NoReturn

from lych_checkpoint.drivers import HELPED, named
from lych_checkpoint.drivers.base import Driver, Evidence, Ground
from lych_checkpoint.errors import CheckpointError, Refused, SettingError

_CONFIG = Path("/etc/lych-checkpoint/helper.toml")
_FIELDS = {"pgdata", "database_url", "pg_bin"}
_TARGET = re.compile(r"lych-[0-9A-Za-z-]{1,58}")
#: An id, or what a restore displaced; never a stage, nor anything outside the copies' own directory.
_NAME = re.compile(r"(displaced-)?[0-9]{8}T[0-9]{12}Z-[0-9a-f]{6}")


def main(arguments: list[str] | None = None) -> int:
    """Serve one caller until it hangs up; 2 where the configuration does not do."""
    parser = argparse.ArgumentParser(prog="lych-checkpoint-helper", description=__doc__)
    parser.add_argument("--config", type=Path, default=_CONFIG, help="TOML, not writable by others")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _ended)
    try:
        ground = read(asked.config)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    Helper(ground).serve(sys.stdin, sys.stdout)
    return 0


def read(config: Path) -> Ground:
    """Return what the helper works on.

    Raises:
        SettingError: the file is missing, malformed, incomplete, or others may write it.
    """
    try:
        with config.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
                raise SettingError("others may write it", str(config), f"chown root {config}; chmod 0640 {config}")
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"cannot be read: {error}", str(config), "see docs/settings.md") from error
    if set(found) - _FIELDS or not {"pgdata", "database_url"} <= set(found) or \
            not all(isinstance(value, str) for value in found.values()):
        raise SettingError("wants pgdata and database_url, and perhaps pg_bin, all text", str(config),
                           "see docs/settings.md")
    return Ground(url=found["database_url"], pgdata=Path(found["pgdata"]).resolve(),
                  pg_bin=Path(found["pg_bin"]) if "pg_bin" in found else None)


class Helper:
    """One caller's session."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._open: Driver | None = None
        self._finished = self._heard = False
        self._verbs: dict[str, Callable[[dict[str, Any]], Any]] = {
            "probe": lambda asked: _unfit(self._driver(asked)),
            "preflight": lambda asked: self._driver(asked).preflight(),
            "prepare": self._prepare,
            "capture": lambda _: self._prepared().capture(),
            "finish": self._finish,
            "keep": lambda _: self._let_go().keep(),
            "abort": lambda _: self._let_go().abort(),
            "begun": lambda asked: self._driver(asked).begun(),
            "take_back": lambda asked: self._driver(asked).take_back(
                _name(asked.get("checkpoint")), sealed=asked.get("sealed") is True),
            "verify": lambda asked: self._driver(asked).verify(
                self._evidence(asked), Path(os.devnull), deep=asked.get("deep") is True),
            "discard": self._discard,
        }

    def serve(self, questions: Iterable[str], answers: IO[str]) -> None:
        """Answer line by line; at the end take back a capture that was not finished."""
        try:
            for line in questions:
                answers.write(json.dumps(self._answer(line)) + "\n")
                answers.flush()
                self._heard = self._finished  # not before: of a caller that was killed meanwhile nothing is kept
        finally:
            if self._open is not None and not self._heard:
                self._open.abort()

    def _answer(self, line: str) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            verb = self._verbs[asked["verb"]]
        except (ValueError, KeyError, TypeError):
            return _said(Refused("this is no verb of the helper", "lych-checkpoint-helper", "", "helper-odd"))
        try:
            return {"done": verb(asked)}
        except CheckpointError as error:
            return _said(error)
        except OSError as error:
            where = str(error.filename or self._ground.pgdata)
            return _said(Refused(str(error.strerror), where, "", "helper-failed"))

    def _prepare(self, asked: dict[str, Any]) -> None:
        if self._open is not None:
            raise Refused("one capture at a time", "lych-checkpoint-helper", "", "helper-odd")
        name, driver = _name(asked.get("checkpoint")), self._driver(asked)
        self._open = driver
        driver.prepare(name, Path(os.devnull))

    def _finish(self, _: dict[str, Any]) -> Evidence:
        evidence = self._prepared().finish()
        self._finished = True
        return evidence

    def _let_go(self) -> Driver:
        driver = self._prepared()
        self._open, self._finished = None, False
        return driver

    def _discard(self, asked: dict[str, Any]) -> None:
        driver, evidence = self._driver(asked), self._evidence(asked)
        if driver.verify(evidence, Path(os.devnull)):
            raise Refused("this is not the copy that was sealed", str(evidence["snapshot"]), "", "other-copy")
        driver.discard(evidence)

    def _driver(self, asked: dict[str, Any]) -> Driver:
        if asked.get("driver") not in HELPED:
            raise Refused("the helper has no such driver", str(asked.get("driver")), "", "driver-unavailable")
        return named(replace(self._ground, owner=str(asked.get("owner", ""))), asked["driver"])

    def _prepared(self) -> Driver:
        if self._open is None:
            raise Refused("nothing was prepared", "lych-checkpoint-helper", "", "helper-odd")
        return self._open

    def _evidence(self, asked: dict[str, Any]) -> Evidence:
        """Take the caller's evidence for a copy beside the PGDATA that we know, whatever path it names."""
        given = asked.get("evidence")
        if not isinstance(given, dict) or not {"snapshot", "uuid", "generation"} <= set(given):
            raise Refused("this is no evidence of a copy", "lych-checkpoint-helper", "", "helper-odd")
        return {"pgdata": str(self._ground.pgdata), "snapshot": _name(given["snapshot"]), "uuid": str(given["uuid"]),
                "generation": given["generation"], **_end(given)}


def _name(given: object) -> str:
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        raise Refused("this is no checkpoint's name", "lych-checkpoint-helper", "", "helper-odd")
    return given


def _end(given: dict[str, Any]) -> Evidence:
    """Return where a recovery ends, which becomes settings of a server."""
    if "target" not in given:
        return {}
    target, timeline = given["target"], given.get("timeline")
    if not isinstance(target, str) or _TARGET.fullmatch(target) is None or type(timeline) is not int:
        raise Refused("this is no point in the WAL", "lych-checkpoint-helper", "", "helper-odd")
    return {"target": target, "timeline": timeline}


def _unfit(driver: Driver) -> dict[str, Any] | None:
    unfit = driver.probe()
    return None if unfit is None else asdict(unfit)


def _said(error: CheckpointError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, **error.as_json()}}


def _ended(*_: object) -> NoReturn:
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
