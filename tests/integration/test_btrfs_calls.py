"""The kernel's side of the btrfs driver, on a real Btrfs: as root, and as the ordinary user who owns the data."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from lych_checkpoint.drivers import btrfs_calls, kernel
from lych_checkpoint.drivers.subvolumes import Subvolumes
from lych_checkpoint.errors import Refused
from ops.servers.filesystems import make_pgdata_subvolume


@pytest.fixture
def shelf(btrfs: Path, request: pytest.FixtureRequest) -> Subvolumes:
    directory = btrfs / request.node.name.replace("/", " ")
    directory.mkdir()
    make_pgdata_subvolume(directory / "data")
    (directory / "data" / "file").write_text("one")
    for slot in ("lych_base_1", "another's"):
        (directory / "data" / "pg_replslot" / slot).mkdir(parents=True)
    made = Subvolumes(directory / "data")
    made.make()
    return made


def test_a_snapshot_is_read_only_and_keeps_its_identity_when_it_is_restored_from(shelf: Subvolumes) -> None:
    shelf.take("sealed")
    shelf.sync()
    before = shelf.find("sealed")
    (shelf.pgdata / "file").write_text("two")
    shelf.unfold("sealed", "stage-1")
    shelf.sync()
    assert before is not None
    assert before.read_only
    assert before.parent_uuid == shelf.live().uuid
    assert shelf.find("sealed") == before
    assert (shelf.path / "sealed" / "file").read_text() == "one"
    with pytest.raises(OSError, match="Read-only"):
        (shelf.path / "sealed" / "file").write_text("three")


@pytest.mark.parametrize("tamper", ["write", "append", "remove", "chmod"])
def test_changed_content_changes_the_generation(shelf: Subvolumes, tamper: str) -> None:
    shelf.take("sealed")
    shelf.sync()
    before = shelf.find("sealed")
    assert before is not None
    shelf.close("sealed", read_only=False)
    file = shelf.path / "sealed" / "file"
    if tamper == "write":
        with file.open("r+b") as opened:  # in place, same length: the least a forger could do
            opened.write(b"ONE")
    elif tamper == "append":
        with file.open("ab") as opened:
            opened.write(b"more")
    elif tamper == "remove":
        file.unlink()
    else:
        file.chmod(0o600 if file.stat().st_mode & 0o044 else 0o644)
    after = shelf.close("sealed", read_only=True)
    assert after.generation > before.generation
    assert after.uuid == before.uuid


def test_an_exchange_swaps_the_data_and_not_the_identities(shelf: Subvolumes) -> None:
    shelf.take("sealed")
    staged = shelf.unfold("sealed", "stage-1")
    (shelf.pgdata / "file").write_text("two")
    live = shelf.live()
    shelf.swap("stage-1")
    assert shelf.live().uuid == staged.uuid
    assert (shelf.pgdata / "file").read_text() == "one"
    aside = shelf.find("stage-1")
    assert aside is not None
    assert aside.uuid == live.uuid
    assert (shelf.path / "stage-1" / "file").read_text() == "two"
    with kernel.directory(shelf.pgdata) as descriptor:
        assert kernel.is_no_cow(descriptor)


def test_what_a_snapshot_would_lack_is_found(shelf: Subvolumes) -> None:
    assert kernel.nested(shelf.pgdata) == []
    (shelf.pgdata / "base").mkdir()
    make_pgdata_subvolume(shelf.pgdata / "base" / "inner")
    assert kernel.nested(shelf.pgdata) == [shelf.pgdata / "base" / "inner"]


def test_a_mount_point_is_told_from_a_subvolume(btrfs: Path, shelf: Subvolumes) -> None:
    assert not kernel.is_mount_point(shelf.pgdata)
    with kernel.directory(shelf.pgdata) as inner, kernel.directory(btrfs) as outer:
        assert btrfs_calls.is_subvolume(inner)
        assert btrfs_calls.file_system(inner) == btrfs_calls.file_system(outer)
    if "LYCH_TEST_BTRFS" not in os.environ:
        assert kernel.is_mount_point(btrfs)


def test_a_symlink_in_place_of_the_shelf_is_refused(shelf: Subvolumes, tmp_path: Path) -> None:
    shelf.path.rmdir()
    shelf.path.symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        shelf.take("sealed")
    assert list(tmp_path.iterdir()) == []


def test_a_shelf_that_others_may_write_is_refused(shelf: Subvolumes) -> None:
    shelf.path.chmod(0o777)
    with pytest.raises(Refused, match="others may write"):
        shelf.take("sealed")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_only_single_names_reach_the_kernel(shelf: Subvolumes, name: str) -> None:
    with pytest.raises(ValueError, match="single name"):
        shelf.take(name)


def test_an_ordinary_user_can_do_all_of_it_with_his_own_data(shelf: Subvolumes) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (shelf.pgdata.parent, shelf.pgdata, *shelf.pgdata.rglob("*"), shelf.path):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        shelf.pgdata.parent.parent.chmod(0o755)
        assert _as(nobody, lambda: _whole_life(shelf)) == 0
    else:
        _whole_life(shelf)
    assert [path.name for path in shelf.path.iterdir()] == []
    assert (shelf.pgdata / "file").read_text() == "one"


def _whole_life(shelf: Subvolumes) -> None:
    shelf.take("sealed")
    shelf.sync()
    staged = shelf.unfold("sealed", "stage-1")
    assert os.listdir(shelf.path / "stage-1" / "pg_replslot") == ["lych_base_1"]
    shelf.note("stage-1", {"uuid": staged.uuid})
    (shelf.pgdata / "file").write_text("two")
    shelf.swap("stage-1")
    shelf.move("stage-1", "displaced-1")
    shelf.close("displaced-1", read_only=True)
    shelf.remove("displaced-1")
    shelf.remove("sealed")
    shelf.remove("sealed")
    shelf.forget("stage-1")


def _as(user: pwd.struct_passwd, act: Callable[[], None]) -> int:
    """Run ``act`` in a forked child that has become ``user``, and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
