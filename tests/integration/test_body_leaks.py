"""A worker lives for weeks: many captures of the body in one process leave no descriptor, child or file behind.

Nor memory. LYCH_LEAK_ROUNDS says how many; 2,000 take some minutes.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from lych_checkpoint import body

ROUNDS = int(os.environ.get("LYCH_LEAK_ROUNDS", "40"))
#: Caches and free lists fill at first.
WARM = 20
#: What the allocator may have kept; a leak of four kilobytes a round is twice this in 2,000 of them.
SPARE_BYTES = 4 << 20


@dataclass(frozen=True)
class Held:
    """What this process holds of the system."""

    descriptors: int
    children: int
    threads: int
    temporary: int


def held(temporary: Path) -> Held:
    gc.collect()
    return Held(
        descriptors=len(os.listdir("/proc/self/fd")),
        children=sum(len(Path(f"/proc/self/task/{one}/children").read_text().split())
                     for one in os.listdir("/proc/self/task")),
        threads=threading.active_count(), temporary=len(os.listdir(temporary)),
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(60 + ROUNDS)
def test_captures_leave_nothing_behind(
    federation_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    policy = body.Policy(dirty="capture", shadow=tmp_path / "shadow")
    before, folders = None, tmp_path / "bundles"
    told: list[tuple[int, Held, int]] = []
    for number in range(WARM + ROUNDS + 1):
        if number in (WARM, WARM + ROUNDS // 2, WARM + ROUNDS):
            told.append((number - WARM, held(temporary), resident_bytes()))
        (federation_root / "core" / "README").write_text(f"{number}\n")
        members = body.discover(federation_root, "core", ("extensions/*",))
        with body.scanning(members, policy) as scan:
            assert scan.worktree_check == "inotify"
            body.pin(scan, f"c{number}")
            body.recheck(scan)
            if number % 20 == 0:  # the dearest part, and after the thaw
                assert body.bundle(scan, f"c{number}", folders / str(number), before) == []
                before = folders / str(number)
        body.unpin(members, f"c{number}")
    with capsys.disabled():
        for number, what, size in told:
            print(f"\n{number} captures: {asdict(what)}, {size >> 10} KiB", end="")
    first, *later = told
    assert [what for _, what, _ in later] == [first[1]] * len(later)
    assert later[-1][2] - first[2] < SPARE_BYTES
