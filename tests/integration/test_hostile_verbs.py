"""The verbs, as a user types them, on a federation that an enemy wrote: nothing of theirs runs, all comes back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.traps import ATTRIBUTES, Trap, make_racy
from tests.fixtures.trees import Entry, contents
from tests.fixtures.workers import Lych

#: Directories that look like an option, a list, two lines; and two that differ in case only.
STRANGE = ("--upload-pack=touch pwned", 'a:b "c"', "new\nline", "Alpha")


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "trap")


@pytest.fixture
def hostile(federation_root: Path, trap: Trap, tmp_path: Path) -> list[Path]:
    """Every repository of the federation, each with everything in it that could hurt."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("not ours")
    for name in STRANGE:
        make_repository(federation_root / "extensions" / name, {"README": f"{name}\n"})
    repositories = [federation_root / "core", *sorted((federation_root / "extensions").iterdir())]
    for repository in repositories:
        fill(repository, tmp_path / "outside")
        branch = f"--upload-pack={trap.program('branch')}"
        git(repository, "update-ref", f"refs/heads/{branch}", "HEAD")
        git(repository, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
        trap.set_in(repository)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", federation_root / "extensions/alpha"], check=True)
    trap.sprung()
    return repositories


def fill(repository: Path, outside: Path) -> None:
    """Commit files of every awkward kind."""
    for name in (b"new\nline", b"not-\xff-utf8", b"--upload-pack=touch pwned", b"-rf", b":(exclude)*", b"x", b"X",
                 b"\x1b[2J"):
        (repository / os.fsdecode(name)).write_text("1\n")
    (repository / "leaves").symlink_to(outside)
    (repository / "leaves-too").symlink_to("../../../../../../../../etc/passwd")
    git_program = repository / "git"
    git_program.write_text("#!/bin/sh\ntouch pwned\n")
    git_program.chmod(0o755)
    commit(repository, dict.fromkeys(("a.evil", "a.process", "a.command", "a.secret", "folder/x"), "1\n"))
    commit(repository, {".gitattributes": ATTRIBUTES, "folder/.gitattributes": "* filter=evil\n"})


def spoil(repository: Path, outside: Path) -> None:
    """Change the tree in a way that a restore must go over."""
    (repository / "a.evil").write_text("2\n")
    (repository / "folder/x").unlink()
    (repository / "folder/.gitattributes").unlink()
    (repository / "folder").rmdir()
    (repository / "folder").symlink_to(outside)
    (repository / "untracked.evil").write_text("2\n")
    make_racy(repository)


def test_nothing_of_theirs_runs_in_any_verb(
    lych: Lych, trap: Trap, hostile: list[Path], federation_root: Path, tmp_path: Path,
) -> None:
    around = {**trap.environment(tmp_path / "home"), "LYCH_DIRTY": "capture"}

    def say(*argv: str, code: int = 0) -> None:
        told = lych(*argv, "--json", **around)
        assert (told.code, trap.sprung()) == (code, ""), (argv, told.out, told.err)

    def everything() -> dict[Path, dict[bytes, Entry]]:
        return {repository: contents(repository) for repository in hostile}

    say("init")
    for repository in hostile:
        (repository / os.fsdecode(b"dirty-\xff.evil")).write_text("0\n")
        make_racy(repository)
    sealed = everything()
    say("create", "--here")
    say("verify")
    say("gate")
    say("status")
    say("doctor")
    for repository in hostile:
        spoil(repository, tmp_path / "outside")
        git(repository, "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "update-ref", "HEAD", "HEAD~1")
    trap.sprung()
    spoilt = everything()
    say("gate", code=78)
    say("diff")
    say("restore", "latest", "--dry-run")
    assert everything() == spoilt
    say("restore", "latest", "--yes")
    assert everything() == sealed
    say("restore", "--undo", "--yes")
    assert everything() == spoilt
    say("recover")
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept"]
    assert not list(tmp_path.rglob("pwned"))
