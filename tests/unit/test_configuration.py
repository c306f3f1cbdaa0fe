"""A configuration of plain lines is read as git reads it; all others are left to git."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lych_checkpoint.errors import Refused
from lych_checkpoint.repository import command, configuration
from lych_checkpoint.repository.place import Repository
from tests.fixtures.federation import git, make_repository

#: What git's own reader treats each in its own way, beside plain words.
_PIECES = st.sampled_from([
    "core", "remote", "origin", "bare", "worktree", "url", "a.b", "true", "0", "x y", "x  y", "-", "_", "é", "[", "]",
    '"', "\\", "\\n", "#", ";", "=", " ", "\t", "\r", "\0", "\v", "'", "include", "path", "extensions",
    "partialClone",
])
_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
_LINES = st.one_of(
    st.builds("[{}]".format, _PIECES), st.builds('[{} "{}"]'.format, _PIECES, _TEXTS),
    st.builds("{} = {}".format, _PIECES, _TEXTS), st.builds("\turl = {}".format, _TEXTS),
    st.builds("{}={}{}".format, _PIECES, _PIECES, _PIECES), st.lists(_PIECES, max_size=6).map("".join),
)
_GIT_SAYS = "https://git.example.org/a"
_BASE = "[core]\n\trepositoryformatversion = 0\n"
#: Said by us to every git, and listed by it.
_OURS = {key.lower() for key in command._CONFIGURATION}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repositories") / "one"
    make_repository(directory, {"a": "1\n"})
    return Repository.at(directory)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(_LINES, max_size=5))
def test_what_is_read_without_git_is_what_git_says(one: Repository, lines: list[str]) -> None:
    (one.common / "config").write_text(_BASE + "\n".join(lines), newline="")
    plain = configuration._plain(one)
    if plain is not None:
        said = configuration._asked(one)
        assert {key: plain[key] for key in plain if key not in _OURS} == \
            {key: said[key] for key in said if key not in _OURS}


@pytest.mark.parametrize(("config", "asked"), [
    ('[remote "origin"]\n\turl = https://example.org/a.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n', False),
    ("# a comment\n\n[Core]\nAutoCRLF=input \n", False),
    ('[alias]\n\tl = log "-1"\n', True), ("[a]\nb = c # d\n", True), ("[include]\npath = more\n", True),
    ("[extensions]\nworktreeConfig = true\n", True), ("[core]\nbare\n", True), ("[a] b = c\n", True),
    ("[core]\nrepositoryformatversion = 1\n", True), ("[a]\n" + "x = 1\n" * 20_000, True),
    ("[core]\nbare = false\nbare = false\n", True),
    (" " * 60_000 + "[a] # c", True), ("[a]\n#" + " " * 60_000 + "\r", True),  # each in one step, not in their square
])
def test_git_is_asked_where_a_line_is_not_plain(
    one: Repository, config: str, asked: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (one.common / "config").write_text(_BASE + config)
    monkeypatch.setattr(configuration, "_asked", lambda repository: {"remote.origin.url": _GIT_SAYS})
    found = configuration.read(one)
    assert (found.remote == _GIT_SAYS) == asked
    if "AutoCRLF" in config:
        assert found.conversions == {"core.autocrlf": "input"}


@pytest.mark.parametrize("config", ["", "[core]\nbare = false\n", "[core]\nrepositoryformatversion = 1\n"])
def test_a_format_that_is_not_the_first_is_left_to_git(one: Repository, config: str) -> None:
    (one.common / "config").write_text(config)
    assert configuration._plain(one) is None


def test_a_linked_worktree_reads_the_shared_one(one: Repository, tmp_path: Path) -> None:
    (one.common / "config").write_text(_BASE + '[remote "origin"]\n\turl = https://example.org/a.git\n')
    git(one.directory, "worktree", "add", "-q", tmp_path / "linked")
    linked = Repository.at(tmp_path / "linked")
    assert linked.git_dir != linked.common
    assert configuration.read(linked).remote == "https://example.org/a.git"


def test_what_git_refuses_is_not_read_without_it(one: Repository) -> None:
    (one.common / "config").write_text(_BASE + "[core\nbare = true\n")
    with pytest.raises(Refused) as caught:
        configuration.read(one)
    assert caught.value.code == "broken"
