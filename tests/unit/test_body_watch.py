"""Where inotify sees everything, and where it cannot: on whatever somebody else may write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lych_checkpoint import body
from lych_checkpoint.body import watch
from tests.fixtures.federation import make_repository
from tests.fixtures.lacking import need_root

_MOUNTS = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /srv rw - tmpfs tmpfs rw
31 30 0:40 / /srv/with\040space rw shared:9 master:2 - nfs4 server:/x rw
32 22 0:41 / /home/fuse rw - fuse.sshfs me@there: rw
33 22 0:42 / /twice rw - 9p shared rw
34 33 0:43 / /twice rw - xfs /dev/sdb rw
35 22 0:44 / /home/agent/inner rw - cifs //server/share rw
"""


@pytest.mark.parametrize(("directory", "found"), [
    ("/", {"ext4", "tmpfs", "nfs4", "fuse.sshfs", "xfs", "cifs"}), ("/srv", {"tmpfs", "nfs4"}),
    ("/srv/other", {"tmpfs"}), ("/srv/with space/deep", {"nfs4"}), ("/home/fused", {"ext4"}),
    ("/home/fuse/x", {"fuse.sshfs"}),
    ("/twice/x", {"xfs"}), ("/home/agent", {"ext4", "cifs"}),
])
def test_the_kind_of_file_system(directory: str, found: set[str]) -> None:
    assert watch.kinds(directory.encode(), watch.mounts(_MOUNTS)) == found


def test_nothing_is_known_of_a_place_that_is_not_mounted() -> None:
    assert watch.kinds(b"/srv", watch.mounts(b"")) == {"unknown"}


@pytest.mark.root
def test_where_others_may_write_every_recheck_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    root = tmp_path / "the root"
    make_repository(root / "core", {"a": "1\n"})
    members = body.discover(root, "core", ())
    with body.scanning(members) as scan:
        assert scan.worktree_check == "inotify"
    (root / "core/mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "core/mounted"], check=True)
    try:
        monkeypatch.setattr(watch, "_LOCAL", watch._LOCAL - {"tmpfs"})
        with body.scanning(members) as scan:
            assert scan.worktree_check == "rescan"
            body.recheck(scan)
    finally:
        subprocess.run(["umount", root / "core/mounted"], check=True)
