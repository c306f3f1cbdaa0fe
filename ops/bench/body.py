"""The body alone, for 1, 20 and 200 repositories: scan, re-check, capture, bundle, verify, restore beside bare git.

One repository of 5,000 files, eighteen of 2,000, all others of 200: 20 hold 41,200. LYCH_BENCH_COUNTS (1,20,200) and
LYCH_BENCH_ROUNDS (20) change how many. Floors run two at a time as we do, in turns with ours, on the same files.
LYCH_BENCH_DOCUMENT=docs/bench-body.md writes the result for people there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lych_checkpoint import body
from lych_checkpoint.manifest import BodyLock, RepoPin
from ops.bench.ground import make_repository, rounds
from ops.bench.record import Row, document, header, report
from ops.servers.child import ServerError

_COUNTS = (1, 20, 200)
_LARGE, _MIDDLE, _SMALL = 5000, 2000, 200
_MIDDLES = 18
#: Files in which the two commits of a repository differ, between which a restore goes to and fro.
_DIFFERENT = 30
_SCAN, _FIRST, _RECHECK = "scan", "first scan", "re-check in the window"
_GOALS_MS: dict[tuple[str, str], float] = {(_SCAN, "20 repositories"): 300, (_RECHECK, "20 repositories"): 2}
_TEXT = """One repository of 5,000 files, eighteen of 2,000, all others of 200. Ours and floor are measured in
turns, two gits at a time, on the same files, which the first round (left out) read into memory. A
restore goes to and fro between two commits that differ in 30 files of each repository: `stage` runs
before the freeze, `displace` and `switch` while nobody works. `stage` reads and hashes every file of the
commit that comes, and flushes the file system once, which others may keep waiting; `displace` captures
nothing where nothing is dirty. A "first scan" is of commits that no checkpoint has sealed; "scan" of those
that the last one did, as most are in most creates: what they hold is not asked again. "scan and capture"
finds one file changed and one new in each repository."""
_CORE, _EXTENSIONS = "r0", ("r*",)


@dataclass(slots=True)
class _Times:
    """Samples by what was measured, each with the name of its floor, in the order of the first sample."""

    floors: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def take(self, what: str, floor: str = "") -> Iterator[None]:
        """Add the time of the body of the `with`."""
        began_s = time.perf_counter()
        yield
        self.floors[what] = floor
        self.samples.setdefault(what, []).append((time.perf_counter() - began_s) * 1000)

    def rows(self, variant: str) -> list[Row]:
        """Return a row for each; the first sample of each warmed caches."""
        return [Row(what, variant, tuple(samples[1:]), floor=self.floors[what])
                for what, samples in self.samples.items()]


def measure() -> None:
    """Measure each count on a federation of its own, and report."""
    rows: list[Row] = []
    counts = [int(one) for one in os.environ.get("LYCH_BENCH_COUNTS", "").split(",") if one] or list(_COUNTS)
    with tempfile.TemporaryDirectory(prefix="lych-bench-", dir=os.environ.get("LYCH_BENCH_DIR")) as name:
        home = Path(name)
        git = subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
        head = header(home, {"git": git})
        head["files"] = {}
        for count in counts:
            root = home / f"of-{count}"
            head["files"][count] = _make(root, count)
            rows += _measure(root, count, max(2, rounds(20) // (4 if count > _COUNTS[1] else 1)))
            shutil.rmtree(root)
    report("body", head, rows)
    written = os.environ.get("LYCH_BENCH_DOCUMENT")
    if written:
        Path(written).write_text(document("body", "How long the body takes", _TEXT, head, rows, _GOALS_MS))
    for row in rows:
        goal_ms = _GOALS_MS.get((row.what, row.variant))
        if goal_ms:
            print(f"{row.what}, {row.variant}: p50 {row.p50_ms:.2f} ms, goal {goal_ms} ms"
                  f"{'' if row.p50_ms <= goal_ms else ': missed'}")


def _make(root: Path, count: int) -> int:
    """Make the repositories, each with two commits; return how many files they hold."""
    print(f"making {count} repositories", file=sys.stderr)
    whole = 0
    for number in range(count):
        files = _LARGE if number == 0 else _MIDDLE if number <= _MIDDLES else _SMALL
        directory = root / f"r{number}"
        for name in range(files):
            path = directory / f"part{name // 100}" / f"file{name}.py"
            if name % 100 == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {number} {name}\n" * 20)
        make_repository(directory)
        _write(directory, "two")
        make_repository(directory)
        subprocess.run(["git", "-C", directory, "repack", "-a", "-d", "-q"], check=True)
        whole += files
    return whole


def _measure(root: Path, count: int, n: int) -> list[Row]:
    times, vault = _Times(), root.parent / f"vault-{count}"
    members = body.discover(root, _CORE, _EXTENSIONS)
    directories = [member.directory for member in members]
    print(f"{count} repositories: {n} rounds", file=sys.stderr)
    known: tuple[RepoPin, ...] = ()
    for number in range(n + 1):
        ticket = f"c{number}"
        with times.take("bare status"):
            _each(directories, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all")
        with ExitStack() as stack, times.take(_FIRST, "bare status"):
            stack.enter_context(body.scanning(members))
        with ExitStack() as stack:
            with times.take(_SCAN, "bare status"):
                scan = stack.enter_context(body.scanning(members, known=known))
            known = scan.pins
            _rechecks(times, scan, directories)
            body.pin(scan, ticket)
            with times.take("bare bundle create"):
                _each(directories, "bundle", "create", "-q", "{git}/bare.bundle", "HEAD")
            with times.take("bundle, and its trial", "bare bundle create"):
                body.bundle(scan, ticket, vault / ticket)
            lock = body.lock_of(scan, ticket, "now")
        with times.take("bare read-tree and diff-files"):
            _each(directories, "read-tree", "HEAD", index="fresh")
            _each(directories, "update-index", "-q", "--refresh", index="fresh")
            _each(directories, "diff-files", "--quiet", index="fresh")
        with times.take("verify", "bare read-tree and diff-files"):
            _expect(body.verify(lock, root) == [], "verify found a difference")
        _captures(times, members, directories, vault / "shadow")
        _restores(times, root, lock, vault, ticket)
        body.unpin(members, ticket)
        shutil.rmtree(vault / ticket)
    return times.rows(f"{count} repositories")


def _rechecks(times: _Times, scan: body.Scan, directories: list[Path]) -> None:
    """Re-check as the window does, beside the least that anybody could do: read HEAD, stat the index."""
    heads = [os.fspath(directory / ".git" / "HEAD") for directory in directories]
    indexes = [os.fspath(directory / ".git" / "index") for directory in directories]
    for _ in range(5):
        with times.take("bare read of HEAD, stat of index"):
            for head, index in zip(heads, indexes, strict=True):
                with open(head, "rb") as file:
                    file.read()
                os.stat(index)
        with times.take(_RECHECK, "bare read of HEAD, stat of index"):
            body.recheck(scan)
    _expect(scan.worktree_check == "inotify", "inotify is not complete: raise fs.inotify.max_user_watches")


def _captures(times: _Times, members: tuple[body.Member, ...], directories: list[Path], shadow: Path) -> None:
    """Make every repository dirty, capture all, and clean them again."""
    for directory in directories:
        (directory / "part0" / "file0.py").write_text(f"# {time.time()}\n")
        (directory / "untracked.py").write_text("# new\n")
    for directory in directories:
        shutil.copy2(directory / ".git" / "index", directory / ".git" / "bare")
    with times.take("bare add and write-tree"):
        _each(directories, "add", "-A", index="bare")
        _each(directories, "write-tree", index="bare")
    with times.take("scan and capture", "bare add and write-tree"):
        body.scan(members, body.Policy(dirty="capture", shadow=shadow))
    for directory in directories:
        (directory / "untracked.py").unlink()
    _each(directories, "checkout", "-q", "--", ".")


def _restores(times: _Times, root: Path, lock: BodyLock, vault: Path, ticket: str) -> None:
    """Go back one commit, and restore what was sealed; each repository is two commits apart in 30 files."""
    members = body.discover(root, _CORE, _EXTENSIONS)
    directories = [member.directory for member in members]
    branches = ["checkout", "-q", "--no-overwrite-ignore"]
    with times.take("bare checkout"):
        _each(directories, *branches, "--detach", "HEAD~1")
    with times.take("stage", "bare checkout"):
        body.stage(lock, root, vault / ticket, ticket)
    with times.take("displace", "bare status"):
        displaced = body.displace(members, root, ticket, vault / "displaced")
    with times.take("switch", "bare checkout"):
        body.switch(lock, root, ticket)
    _expect(body.verify(lock, root) == [], "the restored body differs")
    body.unstage(lock, root, ticket)
    body.unpin(members, ticket, vault / "displaced")
    _expect(len(displaced.repos) == len(members), "the displaced body lost a repository")


def _each(directories: list[Path], *arguments: str, index: str = "index") -> None:
    """Run git in every repository, two at a time. ``{git}`` stands for its git directory."""
    def one(directory: Path) -> None:
        own = directory / ".git"
        subprocess.run(
            ["git", "-C", directory, *(part.replace("{git}", str(own)) for part in arguments)],
            check=True, capture_output=True, env={**os.environ, "GIT_INDEX_FILE": str(own / index)},
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, directories))


def _write(directory: Path, word: str) -> None:
    for name in range(_DIFFERENT):
        (directory / f"part{name // 100}" / f"file{name}.py").write_text(f"# {word}\n" * 20)


def _expect(true: bool, else_say: str) -> None:
    if not true:
        raise ServerError(else_say)
