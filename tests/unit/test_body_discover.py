"""Which repositories are the body, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.errors import Refused
from tests.fixtures.federation import git, make_repository

GLOB = ("extensions/*",)


def refusal(root: Path, core: str = "core", extensions: tuple[str, ...] = GLOB) -> Refused:
    with pytest.raises(Refused) as caught:
        body.discover(root, core, extensions)
    return caught.value


def test_core_and_extensions(federation_root: Path) -> None:
    (federation_root / "extensions/notes").mkdir()
    (federation_root / "extensions/file").write_text("")
    members = body.discover(federation_root, "core", GLOB)
    assert [(member.path, member.role) for member in members] == [
        ("core", "core"), ("extensions/alpha", "extension"), ("extensions/beta", "extension")]
    assert members[1].directory == federation_root / "extensions/alpha"
    assert all(member.root == federation_root for member in members)


def test_a_bang_leaves_out(federation_root: Path) -> None:
    for pattern in ("!extensions/beta", "!extensions/b*"):
        members = body.discover(federation_root, "core", (*GLOB, pattern))
        assert [member.path for member in members] == ["core", "extensions/alpha"]


def test_the_root_may_be_the_core(federation_root: Path) -> None:
    members = body.discover(federation_root / "core", ".", ())
    assert [(member.path, member.directory, member.root) for member in members] == [
        (".", federation_root / "core", federation_root / "core")]


def test_what_a_restore_has_aside_is_no_member(federation_root: Path) -> None:
    make_repository(federation_root / ".lych-stage/t/old/x", {"a": ""})
    assert len(body.discover(federation_root, "core", ("*/*/*/*", "**"))) == 3


@pytest.mark.parametrize("root", ["empty", "missing"])
def test_no_repositories(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty").mkdir()
    found = refusal(tmp_path / root)
    assert (found.code, found.where) == ("no-repositories", str(tmp_path / root))


@pytest.mark.parametrize("gone", ["core", "extensions/alpha"])
def test_a_listed_path_that_is_no_repository(federation_root: Path, gone: str) -> None:
    shutil.rmtree(federation_root / gone / ".git")
    found = refusal(federation_root, "core", ("extensions/alpha", "extensions/beta"))
    assert (found.code, found.where) == ("no-repository", str(federation_root / gone))
    assert len(body.find(federation_root, "core", ("extensions/alpha", "extensions/beta"))) == 2


@pytest.mark.parametrize("extensions", [GLOB, ("extensions/bare",)])
def test_a_bare_repository(federation_root: Path, extensions: tuple[str, ...]) -> None:
    git(federation_root, "init", "-q", "--bare", "extensions/bare")
    found = refusal(federation_root, "core", extensions)
    assert (found.code, found.where) == ("bare", str(federation_root / "extensions/bare"))


def test_a_branch_without_a_commit(federation_root: Path) -> None:
    git(federation_root, "init", "-q", "extensions/new")
    assert refusal(federation_root).code == "unborn"


@pytest.mark.parametrize("wreck", ["objects", "refs", "HEAD"])
def test_a_broken_repository(federation_root: Path, wreck: str) -> None:
    (federation_root / "core/.git" / wreck).rename(federation_root / "elsewhere")
    found = refusal(federation_root)
    assert (found.code, found.where) == ("broken", str(federation_root / "core"))


def test_a_git_file_that_leads_nowhere(federation_root: Path) -> None:
    (federation_root / "extensions/gone").mkdir()
    (federation_root / "extensions/gone/.git").write_text("gitdir: /nowhere\n")
    assert refusal(federation_root).code == "broken"


def test_a_symlink_that_leaves_the_root(federation_root: Path, tmp_path: Path) -> None:
    make_repository(tmp_path / "outside", {"a": ""})
    (federation_root / "extensions/link").symlink_to(tmp_path / "outside")
    assert (refusal(federation_root).code, refusal(federation_root).where) == ("leaves-root", "extensions/link")


@pytest.mark.parametrize("path", ["../outside", "/outside", "extensions/../../outside/*", ""])
def test_a_path_that_leaves_the_root(federation_root: Path, path: str) -> None:
    assert refusal(federation_root, "core", (path,)).code == "leaves-root"


def test_two_paths_to_one_repository(federation_root: Path) -> None:
    (federation_root / "extensions/link").symlink_to(federation_root / "extensions/alpha")
    assert refusal(federation_root).code == "shared-repository"
    (federation_root / "extensions/link").unlink()
    git(federation_root / "core", "worktree", "add", "-q", str(federation_root / "extensions/tree"))
    assert refusal(federation_root).code == "shared-repository"


def test_repositories_that_no_setting_names_are_told(federation_root: Path) -> None:
    for path in ("other", "plugins/new", "extensions/gamma", ".lych-stage/t1", "a/b/too/deep"):
        make_repository(federation_root / path, {"a": ""})
    make_repository(federation_root / "core/inside", {"a": ""})
    assert body.strays(federation_root, "core", GLOB) == ["other", "plugins/new"]
    assert body.strays(federation_root, "core", ("extensions/alpha", "!other", "!plugins/*")) == [
        "extensions/beta", "extensions/gamma"]
    git(federation_root, "init", "-q", ".")
    assert body.strays(federation_root, ".", ()) == []
