"""Captures that meet in one store, of threads, processes or hosts: each is the tree that it looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lych_checkpoint.repository import configuration
from lych_checkpoint.repository.capture import capture
from lych_checkpoint.repository.place import Repository
from tests.fixtures.federation import git, make_repository

_ROUNDS = 12
_CAPTURES = f"""
import sys
from pathlib import Path
from lych_checkpoint.repository import configuration
from lych_checkpoint.repository.capture import capture
from lych_checkpoint.repository.place import Repository
repository = Repository.at(Path(sys.argv[1]))
known, head = configuration.read(repository), repository.head().commit
print("go", flush=True)
sys.stdin.readline()
for _ in range({_ROUNDS}):
    print(*capture(repository, known, head, Path(sys.argv[2]), sys.argv[3], ()), flush=True)
"""


def test_two_captures_in_one_store_do_not_disturb_each_other(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    wanted, store = [], tmp_path / "shadow/store.git"
    for place in places:
        make_repository(place, {"a": "1\n"})
        (place / "a").write_text(f"dirty in {place.name}\n")
        repository = Repository.at(place)
        wanted.append(capture(repository, configuration.read(repository), repository.head().commit,
                              tmp_path / f"apart/{place.name}", "refs/lych/scanned", ()))
        assert git(tmp_path / f"apart/{place.name}", "ls-tree", "--name-only", wanted[-1][1]) == "a"
    runs = [subprocess.Popen([sys.executable, "-c", _CAPTURES, place, store, "refs/lych/scanned"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for place in places]
    for run in runs:
        assert run.stdout is not None
        assert run.stdin is not None
        assert run.stdout.readline() == "go\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    told = [run.communicate()[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert told == [[f"{commit} {tree}"] * _ROUNDS for commit, tree in wanted]
