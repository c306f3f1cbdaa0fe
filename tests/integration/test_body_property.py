"""Random federations, clean and dirty, captured, wrecked at random and restored: every byte, mode and link is back.

LYCH_TEST_EXAMPLES says how many; CI tries the same ones each time.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lych_checkpoint import body
from tests.fixtures.federation import git
from tests.fixtures.trees import Entry, contents
from tests.integration.test_body_restore import Story

EXAMPLES = int(os.environ.get("LYCH_TEST_EXAMPLES", "12"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 + 5 * EXAMPLES)]

NAMES = st.sampled_from([b"a", b"b", b"README", b"Case", b"case", b"-option", b" space ", b"line\nbreak", b"\xff\xfe",
                         b"quote\"'\\", b"*.log", b"caf\xc3\xa9", b"x.txt", b"x.bin", b"deep", b":(top)", b"~"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
BYTES = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"one\r\ntwo\r\n", b"one\ntwo\n", b"$Id$\n"]),
                  st.integers(1, 9).map(lambda number: b"long line\n" * number * 20))
FILES = st.tuples(st.just("file"), st.sampled_from([0o644, 0o755]), BYTES)
ODD_FILES = st.tuples(st.just("file"), st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o640]), BYTES)
LINKS = st.tuples(st.just("link"), st.just(0), st.sampled_from([b"a", b"../out", b"/etc/hostname", b"nowhere", b"."]))
# None that converts line ends or keywords: what such a file holds while git calls it clean is git's to say, and
# `test_line_ends_are_converted_as_git_does` holds us to that.
ATTRIBUTES = st.sampled_from([b"*.bin -text\n", b"*.txt filter=none\n", b"* -text -diff\n", b"x.* merge=union\n"])


def trees(files: st.SearchStrategy[Entry], smallest: int = 0) -> st.SearchStrategy[dict[bytes, Entry]]:
    """What a working tree may hold, by path; no path is both a file and a directory."""
    return st.dictionaries(PATHS, files | LINKS, min_size=smallest, max_size=8).map(without_clashes)


def without_clashes(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    kept: dict[bytes, Entry] = {}
    for path, entry in tree.items():
        above = {path[:at] for at, byte in enumerate(path) if byte == 0x2F}
        if not above & kept.keys() and not any(one.startswith(path + b"/") for one in kept):
            kept[path] = entry
    return kept


#: Where the repositories lie: side by side, in a core that is the root itself, or the second as the core's submodule.
LAYOUTS = {
    "apart": ("core", "extensions/one", "extensions/two"), "root": (".", "extensions/one", "extensions/two"),
    "submodule": ("core", "core/sub", "extensions/one"),
}
#: What a repository holds that is not its own tree.
NOT_OURS = (".git", ".gitattributes", ".gitignore", ".gitmodules", ".lych-stage", "sub", "extensions")
REPOSITORIES = st.fixed_dictionaries({
    "committed": trees(FILES, smallest=1), "attributes": st.none() | ATTRIBUTES, "ignores": st.booleans(),
    "dirty": st.none() | trees(ODD_FILES), "staged": st.booleans(),
    "future": st.none() | trees(FILES), "soil": st.none() | trees(ODD_FILES),
    "wreck": st.sampled_from(["", "", "index", "gone", "orphan", "detached", "ignored in the way"]),
    "kind": st.sampled_from(["plain", "plain", "sha256", "worktree"]), "closed": st.booleans(),
})


def write(directory: Path, tree: dict[bytes, Entry]) -> None:
    """Make the working tree hold exactly ``tree``, git's own and other repositories apart."""
    for entry in directory.iterdir():
        if entry.name not in NOT_OURS:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for path, (kind, mode, data) in tree.items():
        full = directory / os.fsdecode(path)
        full.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            full.symlink_to(os.fsdecode(data))
        else:
            full.write_bytes(data)
            full.chmod(mode)


def save(directory: Path, message: str) -> None:
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "--allow-empty", "-m", message)


def git_directory(directory: Path, *, shared: bool = False) -> Path:
    return directory / git(directory, "rev-parse", "--git-common-dir" if shared else "--git-dir")


def own(root: Path, name: str, names: Sequence[str]) -> dict[bytes, Entry]:
    """What a repository's working tree holds, other repositories in it apart."""
    others = [os.path.relpath(root / one, root / name).encode() for one in names if one != name]
    inside = tuple(one for path in others for one in (path, path + b"/") if not path.startswith(b".."))
    return contents(root / name, lambda path: not (path + b"/").startswith((b".lych-stage/", *inside)))


def close(directory: Path) -> None:
    """Give every directory a mode that git does not keep."""
    for folder, names, _ in os.walk(os.fsencode(directory)):
        names[:] = [name for name in names if os.fsdecode(name) not in NOT_OURS]
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)


def folders(directory: Path) -> dict[bytes, int]:
    """The modes of the directories."""
    found = {}
    for folder, names, _ in os.walk(os.fsencode(directory)):
        names[:] = [name for name in names
                    if os.fsdecode(name) not in NOT_OURS and not os.path.islink(os.path.join(folder, name))]
        found |= {os.path.relpath(path, os.fsencode(directory)): stat.S_IMODE(os.lstat(path).st_mode)
                  for path in (os.path.join(folder, name) for name in names)}
    return found


def begin(directory: Path, plan: dict[str, Any], mains: Path, parent: Path | None = None) -> None:
    if parent is not None:
        source = mains / "source"
        source.mkdir(parents=True)
        git(source, "init", "-q", "-b", "main")
        save(source, "Before")
        git(parent, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(source), directory.name)
    elif plan["kind"] == "worktree":
        directory.mkdir(parents=True)
        main = mains / directory.name
        main.mkdir(parents=True)
        git(main, "init", "-q", "-b", "main")
        save(main, "Before")
        git(main, "checkout", "-q", "--detach")
        git(main, "worktree", "add", "-q", str(directory), "main")
    else:
        directory.mkdir(parents=True)
        git(directory, "init", "-q", "-b", "main", f"--object-format={plan['kind'].replace('plain', 'sha1')}")
    if plan["attributes"]:
        (directory / ".gitattributes").write_bytes(plan["attributes"])
    (directory / ".gitignore").write_text("/extensions/\n" + "*.ignored\n" * plan["ignores"])
    write(directory, plan["committed"])
    save(directory, "Begin")
    if parent is not None:
        git(parent, "add", directory.name)
        git(parent, "commit", "-q", "-m", "Take it along")
    if plan["dirty"] is not None:
        write(directory, plan["dirty"])
        if plan["closed"]:
            close(directory)
        if plan["staged"]:
            git(directory, "add", "-A")


def stands(directory: Path) -> bool:
    """Whether there is more than the empty directory that git makes where a submodule is to be."""
    return directory.exists() and any(directory.iterdir())


def wreck(directory: Path, plan: dict[str, Any]) -> None:
    if plan["future"] is not None:
        write(directory, plan["future"])
        save(directory, "Future")
    if plan["soil"] is not None:
        write(directory, plan["soil"])
    how = plan["wreck"]
    if how == "index":
        (git_directory(directory) / "index").write_bytes(b"DIRC nonsense")
    elif how == "gone":
        shutil.rmtree(directory)
    elif how == "orphan":
        git(directory, "checkout", "-q", "--orphan", "other")
        save(directory, "Other")
        git(directory, "branch", "-q", "-D", "main")
        git(directory, "reflog", "expire", "--expire=now", "--all")
        git(directory, "gc", "-q", "--prune=now")
    elif how == "detached":
        git(directory, "checkout", "-q", "--detach")
    elif how == "ignored in the way":
        (git_directory(directory, shared=True) / "info").mkdir(exist_ok=True)
        (git_directory(directory, shared=True) / "info/exclude").write_text("*\n")
        sealed = plan["committed"] if plan["dirty"] is None else plan["dirty"]
        write(directory, dict.fromkeys(sealed, ("file", 0o600, b"in the way")))


def as_git_keeps_it(found: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """The same with only the mode that a commit holds."""
    return {path: (kind, 0o755 if mode & stat.S_IXUSR else 0o644, data) if kind == "file" else (kind, mode, data)
            for path, (kind, mode, data) in found.items()}


@settings(max_examples=EXAMPLES, derandomize=os.environ.get("CI") == "true",
          phases=[Phase.reuse, Phase.generate],  # making a failure small takes minutes here
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(layout=st.sampled_from(sorted(LAYOUTS)), plans=st.lists(REPOSITORIES, min_size=1, max_size=3))
def test_any_federation_comes_back(layout: str, plans: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(prefix="lych-test-") as place:
        root = Path(place, "the root")
        names = LAYOUTS[layout][:len(plans)]
        story = Story(root, Path(place, "vault"), names[0], names[1:])
        if layout == "submodule":  # git has none of another kind of hash
            plans = [{**plan, "kind": "plain"} for plan in plans]
        for name, plan in zip(names, plans, strict=True):
            begin(root / name, plan, Path(place, "mains"), root / "core" if name == "core/sub" else None)
        lock = story.checkpoint(dirty="capture")
        sealed = {name: own(root, name, names) for name in names}
        doors = {name: folders(root / name) for name in names}
        for name, plan in reversed([*zip(names, plans, strict=True)]):  # what is inside another first
            wreck(root / name, {**plan, "wreck": ""} if (name, plan["wreck"]) == (".", "gone") else plan)
        evolved = {name: own(root, name, names) for name in names if stands(root / name)}
        displaced = story.restore(lock)
        assert body.verify(lock, root) == []
        for pin in lock.repos:
            exact = (lambda found: found) if pin.captured else as_git_keeps_it
            assert exact(own(root, pin.path, names)) == exact(sealed[pin.path])
            if pin.captured:
                assert folders(root / pin.path).items() >= doors[pin.path].items()
        body.switch_back(displaced, root, "t1")
        for pin in displaced.repos:
            exact = (lambda found: found) if pin.captured else as_git_keeps_it
            assert exact(own(root, pin.path, names)) == exact(evolved[pin.path])
        assert {name for name in names if stands(root / name)} == evolved.keys()
