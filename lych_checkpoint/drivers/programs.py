"""Where PostgreSQL's programs are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lych_checkpoint.errors import Refused
from lych_checkpoint.process import run

#: Where distributions keep the programs of one major version, off PATH.
_HOMES = ("usr/lib/postgresql/{major}/bin", "usr/pgsql-{major}/bin", "usr/lib/postgresql{major}/bin")


def find(name: str, pg_bin: Path | None, major: int = 0) -> Path | None:
    """Return the program: in ``pg_bin`` if that is given, else where a distribution keeps it, else on PATH.

    Args:
        name: the program's.
        pg_bin: LYCH_PG_BIN.
        major: of the server; without it the newest of several is taken.
    """
    if pg_bin is not None:
        return pg_bin / name if (pg_bin / name).exists() else None
    kept = [path for home in _HOMES for path in Path("/").glob(f"{home.format(major=major or '*')}/{name}")]
    on_path = shutil.which(name)
    if kept and (major or not on_path):
        return max(kept, key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))])
    return Path(on_path) if on_path else None


def need(name: str, pg_bin: Path | None, major: int = 0) -> Path:
    """Return the program, see `find`.

    Raises:
        Refused: there is none (code ``program-missing``).
    """
    found = find(name, pg_bin, major)
    if found is None:
        raise Refused(f"the program {name} was not found", str(pg_bin or "PATH"),
                      f"set LYCH_PG_BIN to the directory of {name}", "program-missing")
    return found


def major_of(program: Path) -> int:
    """Return the major version that the program says it is.

    Raises:
        Refused: it does not run.
    """
    said = run([program, "--version"], timeout_s=10, mend="set LYCH_PG_BIN")
    number = re.search(r"\s(\d+)", said)
    return int(number[1]) if number else 0
