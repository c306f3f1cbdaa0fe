"""An undo is bit for bit, also of what had no place in the body that a restore brought back."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lych_checkpoint import body
from lych_checkpoint.manifest import BodyLock
from tests.fixtures.federation import commit, git, make_repository
from tests.fixtures.trees import contents
from tests.fixtures.workers import Lych

EXTENSIONS = ("extensions/*", "extensions/gamma/inner")


@pytest.fixture
def lych_environment(lych_environment: dict[str, str], soul: dict[str, str]) -> dict[str, str]:
    """The test's federation on that server."""
    return {**lych_environment, **soul}


def add_extension(path: Path) -> None:
    """Make a repository with all that no bundle holds: other branches, stash, configuration, hook, ignored file."""
    make_repository(path, {"README": "gamma\n", ".gitignore": "*.key\n"})
    git(path, "branch", "idea")
    git(path, "checkout", "-q", "idea")
    commit(path, {"idea": "only on another branch\n"})
    git(path, "checkout", "-q", "main")
    (path / "README").write_text("put away\n")
    git(path, "stash", "-q")
    git(path, "config", "remote.upstream.url", "https://example.org/gamma")
    (path / ".git/hooks").mkdir(exist_ok=True)
    (path / ".git/hooks/post-merge").write_text("#!/bin/sh\n")
    (path / ".git/hooks/post-merge").chmod(0o755)
    (path / "secret.key").write_text("ignored\n")
    (path / "secret.key").chmod(0o600)
    (path / "README").write_text("not committed\n")
    (path / "loose").write_text("unknown to git\n")
    os.utime(path / "secret.key", (1, 1))
    if os.geteuid() == 0:
        os.chown(path / "secret.key", 12345, 12345)


def whole(root: Path) -> dict[str, Any]:
    """Return every byte, mode and owner of the body, and where its repositories stand."""
    found: dict[str, Any] = {}
    for repository in sorted(path.parent for path in (*root.glob("core/.git"), *root.glob("extensions/*/.git"))):
        files = contents(repository, lambda path: b"/.git/" not in path)
        refs = git(repository, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        owners = {path: os.lstat(os.path.join(os.fsencode(repository), path)) for path in files}
        found[repository.relative_to(root).as_posix()] = {
            "files": files, "owners": {path: (one.st_uid, one.st_gid) for path, one in owners.items()},
            "HEAD": (repository / ".git/HEAD").read_text(), "config": (repository / ".git/config").read_text(),
            "refs": [ref for ref in refs if not ref.startswith("refs/lych/")],
            "stash": git(repository, "stash", "list"),
            "status": git(repository, "status", "--porcelain", "--ignored"),
            "hooks": {path.name: stat.S_IMODE(path.stat().st_mode) for path in (repository / ".git/hooks").glob("*")},
        }
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what is not the same, so that a failure can be read."""
    return {f"{path}: {what}": (one.get(path, {}).get(what), other.get(path, {}).get(what))
            for path in {*one, *other} for what in {*one.get(path, {}), *other.get(path, {})}
            if one.get(path, {}).get(what) != other.get(path, {}).get(what)}


def rows(url: str) -> list[Any]:
    """Return what the table of the test holds."""
    with psycopg.connect(url) as connection:
        return connection.execute("select * from account order by id").fetchall()


@pytest.mark.parametrize("soul", ["dump", "btrfs"], indirect=True)
def test_three_undos_end_where_it_began(lych: Lych, federation_root: Path, soul: dict[str, str]) -> None:
    url, core, gamma = soul["LYCH_DATABASE_URL"], federation_root / "core", federation_root / "extensions/gamma"
    with psycopg.connect(url) as connection:
        connection.execute("create table account as select 1 as id, 100 as amount")
    commit(core, {"local.ini": "tracked then\n"})
    assert lych("init").code == 0
    assert lych("restore", "--undo", "--yes").code == 2
    assert lych("create", "--here").code == 0
    sealed = (rows(url), {path: one["files"] for path, one in whole(federation_root).items()})
    git(core, "rm", "-q", "local.ini")
    commit(core, {".gitignore": "local.ini\n"})
    (core / "local.ini").write_text("ignored, and in the way of what comes\n")
    (federation_root / "extensions/beta/dirty").write_text("not committed\n")
    add_extension(gamma)
    with psycopg.connect(url) as connection:
        connection.execute("update account set amount = 7; insert into account values (2, 2)")
    new = (rows(url), whole(federation_root))
    assert lych("restore", "latest", "--yes").code == 0
    old = (rows(url), whole(federation_root))  # no branch is moved back, so this is not where HEAD was
    assert (old[0], {path: one["files"] for path, one in old[1].items()}) == sealed
    for expected in (new, old, new):
        undone = lych("restore", "--undo", "--yes", "--json")
        assert undone.code == 0, undone.out
        assert (rows(url), differing(whole(federation_root), expected[1])) == (expected[0], {})
    assert (gamma / "secret.key").stat().st_mtime == 1


def test_a_repository_inside_one_that_was_moved_comes_back_as_it_was(federation_root: Path, tmp_path: Path) -> None:
    bundles, shadow, gamma = tmp_path / "bundles", tmp_path / "shadow", federation_root / "extensions/gamma"

    def displace(ticket: str) -> BodyLock:
        return body.displace(body.find(federation_root, "core", EXTENSIONS), federation_root, ticket, shadow)

    def restore(lock: BodyLock, ticket: str) -> BodyLock:
        body.stage(lock, federation_root, bundles, ticket)
        goes = displace(ticket)
        body.switch(lock, federation_root, ticket)
        assert body.verify(lock, federation_root) == []
        body.bundle_lock(goes, federation_root, ticket, bundles)
        body.unstage(lock, federation_root, ticket)
        return goes

    before = displace("t0")
    add_extension(gamma)
    make_repository(gamma / "inner", {"README": "inside gamma\n"})
    git(gamma / "inner", "branch", "idea")
    (gamma / "inner/.git/info/exclude").write_text("*.key\n")
    (gamma / "inner/one.key").write_text("ignored\n")
    now = (whole(federation_root), git(gamma / "inner", "branch"))
    goes = restore(before, "t1")
    assert not gamma.exists()
    restore(goes, "t2")
    assert (differing(whole(federation_root), now[0]), git(gamma / "inner", "branch")) == ({}, now[1])
    assert list((federation_root / ".lych-stage/t1/old").iterdir())  # kept, for whoever restores that copy again
