"""Kill -9 in the middle of a switch of 20 repositories, again and again: it ends all old or all new, to the byte.

LYCH_TEST_BODY_KILLS says how often in all, half of them with all gits too: 14 if not said.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lych_checkpoint import body
from tests.fixtures.federation import commit, make_repository
from tests.fixtures.trees import contents

EXTENSIONS = ("extensions/*",)
NAMES = ("core", *(f"extensions/e{number}" for number in range(19)))
KILLS = max(2, int(os.environ.get("LYCH_TEST_BODY_KILLS", "14")) // 2)
_SWITCH = """
import sys
from pathlib import Path
from lych_checkpoint import body
from lych_checkpoint.manifest import BodyLock
act, lock, root = sys.argv[1], BodyLock.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
print("go", flush=True)
(body.switch if act == "switch" else body.switch_back)(lock, root, "t1", alone=sys.argv[4] == "alone")
"""


@pytest.mark.slow
@pytest.mark.timeout(600 + 30 * KILLS)  # each switch waits for the disk, which others may keep busy
@pytest.mark.parametrize("whole_group", [False, True], ids=["only the parent", "git too"])
def test_killed_switches_end_on_one_side(
    tmp_path: Path, whole_group: bool, capsys: pytest.CaptureFixture[str],
) -> None:
    root, vault = tmp_path / "root", tmp_path / "vault"
    for name in NAMES:
        make_repository(root / name, {f"d{number % 7}/f{number}": f"{number}\n" * 40 for number in range(40)})
    members = body.discover(root, "core", EXTENSIONS)
    with body.scanning(members) as scan, body.pinned(scan, "c1"):
        body.bundle(scan, "c1", vault / "bundles")
        lock = body.lock_of(scan, "c1", "now")
    sealed = {name: contents(root / name) for name in NAMES}
    for name in NAMES[:-1]:
        commit(root / name, {f"d{number % 7}/f{number}": f"new {number}\n" * 40 for number in range(45)})
        (root / name / "d0/f0").write_text("dirty\n")
        (root / name / "untracked").write_text("u\n")
    subprocess.run(["rm", "-r", root / NAMES[-1]], check=True)
    make_repository(root / "extensions/extra", {"x": "x\n"})
    evolved = {name: contents(root / name) for name in (*NAMES[:-1], "extensions/extra")}
    body.stage(lock, root, vault / "bundles", "t1")
    displaced = body.displace(body.find(root, "core", EXTENSIONS), root, "t1", vault / "shadow")
    (vault / "new").write_text(lock.dumps())
    (vault / "old").write_text(displaced.dumps())

    def run(act: str, after_s: float | None) -> bool:
        """Run one direction in a process of its own; returns whether it was killed before it ended."""
        which, alone = ("new" if act == "switch" else "old"), ("alone" if whole_group else "")
        child = subprocess.Popen([sys.executable, "-c", _SWITCH, act, vault / which, root, alone],
                                 stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        if after_s is not None:
            time.sleep(after_s)
            if child.poll() is None:
                (os.killpg if whole_group else os.kill)(child.pid, signal.SIGKILL)
        child.stdout.close()
        return child.wait() != 0

    began_s = time.monotonic()
    assert not run("switch", None)
    took_s = time.monotonic() - began_s
    assert not run("back", None)
    chance = random.Random(7)
    torn = kills = 0
    forward = False
    while kills < KILLS:
        forward = not forward
        kills += 1
        torn += run("switch", chance.uniform(0.02, 0.9) * took_s)
        if not forward:
            kills += 1
            torn += run("back", chance.uniform(0.02, 0.9) * took_s)
            body.switch_back(displaced, root, "t1", alone=whole_group)
        else:
            body.switch(lock, root, "t1", alone=whole_group)
            assert body.verify(lock, root) == []
            assert {name: contents(root / name) for name in NAMES} == sealed
            assert not (root / "extensions/extra").exists()
            body.switch_back(displaced, root, "t1", alone=whole_group)
        assert body.verify(displaced, root, shadow=vault / "shadow") == []
        assert {name: contents(root / name) for name in evolved} == evolved
        assert not (root / NAMES[-1]).exists()
    with capsys.disabled():
        print(f"\n{kills} kills, {torn} of them before the switch had ended", end="")
    # The first switch, which says when to kill, may have been a slow one: a busy machine must not fail this.
    assert torn >= KILLS // 5, "the kills came too late to mean anything"
