"""Reading a repository without git agrees with git, in every form that a repository takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lych_checkpoint.body.area import safe_name
from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import bundles, command, configuration
from lych_checkpoint.repository.lens import inside, opened
from lych_checkpoint.repository.objects import reading
from lych_checkpoint.repository.place import Repository
from lych_checkpoint.repository.worktree import Folders, changes, shown
from tests.fixtures.federation import commit, git, make_repository


@pytest.fixture
def one(tmp_path: Path) -> Path:
    make_repository(tmp_path / "one", {"a": "1\n"})
    return tmp_path / "one"


@pytest.mark.parametrize("packed", [False, True])
def test_head_of_a_branch(one: Path, packed: bool) -> None:
    git(one, "checkout", "-q", "-b", "feature/deep")
    git(one, "tag", "-a", "-m", "note", "v1")
    if packed:
        git(one, "pack-refs", "--all")
    head = Repository.at(one).head()
    assert (head.commit, head.branch) == (git(one, "rev-parse", "HEAD"), "feature/deep")
    assert Repository.at(one).tip("main") == head.commit
    assert Repository.at(one).tip("none") == ""


def test_head_of_a_detached_one(one: Path) -> None:
    git(one, "checkout", "-q", "--detach")
    assert Repository.at(one).head().branch == ""


def test_head_of_a_linked_worktree(one: Path, tmp_path: Path) -> None:
    git(one, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    side = commit(tmp_path / "side", {"b": "2\n"})
    repository = Repository.at(tmp_path / "side")
    assert (repository.head().commit, repository.head().branch) == (side, "side")
    assert repository.common == one / ".git"
    with reading() as reader:
        assert reader.tree(repository, side) == git(tmp_path / "side", "rev-parse", "HEAD^{tree}")


def test_a_git_directory_elsewhere_must_be_that_trees_own(one: Path, tmp_path: Path) -> None:
    def code(directory: Path) -> str:
        try:
            configuration.read(Repository.at(directory))
        except Refused as error:
            return error.code
        return ""

    git(one, "worktree", "add", "-q", "--detach", str(tmp_path / "side"))
    other = tmp_path / "other"
    other.mkdir()
    for target in (one / ".git/worktrees/side", one / ".git"):
        (other / ".git").write_text(f"gitdir: {target}\n")
        assert code(other) == "foreign-git-dir"
    (other / ".git").unlink()
    (other / ".git").mkdir()
    (other / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (other / ".git/commondir").write_text(f"{one / '.git'}\n")
    assert code(other) == "foreign-git-dir"
    assert (code(one), code(tmp_path / "side")) == ("", "")
    (tmp_path / "side").rename(tmp_path / "moved")  # git goes on there too
    assert code(tmp_path / "moved") == ""
    git(tmp_path, "init", "-q", "-b", "main", f"--separate-git-dir={tmp_path / 'apart.git'}", "tree")
    commit(tmp_path / "tree", {"a": "1\n"})
    assert code(tmp_path / "tree") == "foreign-git-dir"
    git(tmp_path / "tree", "config", "core.worktree", str(tmp_path / "tree"))
    assert code(tmp_path / "tree") == ""


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    git(tmp_path / "one", "init", "-q", "--object-format=sha256")
    head = commit(tmp_path / "one", {"a": "1\n"})
    repository = Repository.at(tmp_path / "one")
    assert repository.head().commit == head
    assert configuration.read(repository).object_format == "sha256"
    with reading() as reader:
        assert reader.tree(repository, head) == git(tmp_path / "one", "rev-parse", "HEAD^{tree}")


@pytest.mark.parametrize(("content", "code"), [
    ("ref: refs/heads/none\n", "unborn"), ("ref: ../../etc/passwd\n", "broken"), ("nonsense\n", "broken"),
    ("", "broken"), ("ref: refs/heads/loop\n", "broken"),
])
def test_a_head_that_is_no_commit_is_refused(one: Path, content: str, code: str) -> None:
    (one / ".git/refs/heads/loop").write_text("ref: refs/heads/loop\n")
    (one / ".git/HEAD").write_text(content)
    with pytest.raises(Refused) as caught:
        Repository.at(one).head()
    assert caught.value.code == code


@pytest.mark.parametrize(("key", "value", "code"), [
    ("core.bare", "true", "bare"), ("core.worktree", "/elsewhere", "foreign-work-tree"),
    ("core.sparseCheckout", "true", "sparse"), ("extensions.partialClone", "origin", "partial-clone"),
])
def test_a_configuration_that_cannot_be_captured_is_refused(one: Path, key: str, value: str, code: str) -> None:
    git(one, "config", "core.repositoryFormatVersion", "1")
    git(one, "config", key, value)
    with pytest.raises(Refused) as caught:
        configuration.read(Repository.at(one))
    assert caught.value.code == code


@pytest.mark.parametrize(("url", "stripped"), [
    ("https://me:secret@git.example.org:8443/o/r.git?token=x#y", "https://git.example.org:8443/o/r.git"),
    ("git@git.example.org:o/r.git", "ssh://git.example.org/o/r.git"), ("/srv/git/r.git", ""), ("../r", ""),
    ("file:///srv/r.git", ""), ("ext::sh -c x", ""), ("https://[broken/", ""), ("", ""),
])
def test_a_remote_is_kept_without_secrets(url: str, stripped: str) -> None:
    assert configuration.without_secrets(url) == stripped


def test_a_callers_environment_does_not_count(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_repository(tmp_path / "other", {"z": "26\n"})
    for name, value in {
        "GIT_DIR": tmp_path / "other/.git", "GIT_INDEX_FILE": tmp_path / "other/.git/index",
        "GIT_WORK_TREE": tmp_path / "other", "GIT_OBJECT_DIRECTORY": tmp_path / "other/.git/objects",
        "GIT_NAMESPACE": "odd", "GIT_COMMON_DIR": tmp_path / "other/.git",
        "GIT_CONFIG_PARAMETERS": "'core.bare=true'", "GIT_LITERAL_PATHSPECS": "1", "GIT_SHALLOW_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, str(value))
    repository = Repository.at(one)
    head = repository.head().commit
    with reading() as reader, opened(repository, configuration.read(repository), head, fresh=False) as lens:
        assert reader.holds(repository, head)
        assert changes(lens) == []
        assert lens.git("ls-files").out == b"a\n"


def test_every_file_of_a_commit_is_read(one: Path) -> None:
    (one / "large").write_bytes(os.urandom(3_000_000))  # git streams such a one, and goes on when it is damaged
    commit(one, {"small": "1\n"})
    repository = Repository.at(one)
    head = repository.head().commit
    with reading() as reader:
        assert reader.reads(repository, head)
        for name in ("small", "large"):
            blob = git(one, "rev-parse", f"HEAD:{name}")
            path = one / ".git/objects" / blob[:2] / blob[2:]
            whole = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 255]) + whole[-7:])
            assert not reader.reads(repository, head)
            assert reader.holds(repository, head)
            path.write_bytes(whole)
        assert reader.reads(repository, head)


def test_a_directory_name_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "$HOME ~ 'x' --upload-pack=y"
    head = make_repository(odd, {"a": "1\n"})
    with reading() as reader:
        assert reader.holds(Repository.at(odd), head)


def test_a_missing_git_is_refused_by_name(one: Path, tmp_path: Path) -> None:
    script = ("import sys; from pathlib import Path; from lych_checkpoint.repository.command import run\n"
              "from lych_checkpoint.errors import Refused\n"
              "try: run(Path(sys.argv[1]), 'version')\n"
              "except Refused as error: print(error.code)")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run([sys.executable, "-c", script, one / ".git"], check=True, capture_output=True, text=True,
                          env={**clean, "PATH": str(tmp_path)})
    assert (done.stdout, done.stderr) == ("program-missing\n", "")


def test_a_store_may_have_the_separator_in_its_name(one: Path, tmp_path: Path) -> None:
    store = tmp_path / "a:b"
    store.mkdir()
    (one / ".git/objects").rename(store / "objects")
    (one / ".git/objects").mkdir()
    repository = Repository.at(one)
    with reading() as reader:
        assert reader.lockfiles(repository, repository.head().commit, (store / "objects",))[0]


def test_an_absolute_path_in_an_index_is_no_folder_of_the_tree(one: Path) -> None:
    assert not Folders(one).is_real(b"/etc/x")
    assert Folders(one).mode(b"/etc/passwd") == 0


def test_the_version_of_git_is_judged_by_its_line() -> None:
    old = ["2.39.5", "2.42.9", "2.43.6", "2.47.2 (Apple Git-1)", "2.50.0", "2.50"]
    fresh = ["2.43.7", "2.50.1", "2.51.0", "2.51.0.windows.1", "3.0.0"]
    assert [command.is_old(version) for version in (*old, *fresh)] == [True] * len(old) + [False] * len(fresh)
    assert command.git_version()[0].isdigit()


def test_git_that_takes_too_long_is_killed_also_without_ps(one: Path, tmp_path: Path) -> None:
    """In a process of its own: GitPython finds its programs by the PATH that it was started with."""
    os.mkfifo(one / ".git" / "slow")
    git(one, "config", "include.path", str(one / ".git" / "slow"))
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in ("git", "env"):
        (programs / program).symlink_to(str(shutil.which(program)))
    script = ("import os, sys; from pathlib import Path; from lych_checkpoint.repository.command import run\n"
              "from lych_checkpoint.errors import Refused\n"
              "try: run(Path(sys.argv[1]), 'config', '--list', timeout_s=0.3)\n"
              "except Refused as error: print(error.code)\n"
              "print(Path(f'/proc/self/task/{os.getpid()}/children').read_text())")
    done = subprocess.run([sys.executable, "-c", script, one / ".git"], check=True, capture_output=True, text=True,
                          env={**os.environ, "PATH": str(programs)}, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["git-slow"], "")


def test_paths_of_ours_are_not_looked_at_whatever_they_are_called(one: Path) -> None:
    names = ["lychd.lock", "odd [a]*?!#\\ name", "#hash", "!bang", "trailing ", "line\nbreak"]
    for name in names:
        (one / name).write_text("ours")
    (one / "odd aa").write_text("theirs")
    repository = Repository.at(one)
    ours = inside(one, [one / name for name in names])
    known, head = configuration.read(repository), repository.head().commit
    with opened(repository, known, head, leave_out=ours, fresh=False) as lens:
        assert [change.path for change in changes(lens)] == [b"odd aa"]


def test_names_are_shown_on_one_line() -> None:
    assert shown(b"a\nb\xff\x1b[31m") == "a\\nb\\xff\\x1b[31m"


def test_safe_names_are_unique_and_stay_in_their_directory() -> None:
    paths = [".", "a/b", "a-b", "a b", "..a", "ä", "a" * 300, "\udcff"]
    names = {safe_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all("/" not in name and not name.startswith(".") and len(name) < 70 for name in names)


def test_a_file_that_is_no_bundle_brings_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\1\2")
    assert bundles.header(tmp_path / "x").tip != "0" * 40
    assert bundles.header(tmp_path / "none").tip == ""
