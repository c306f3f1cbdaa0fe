"""The kernel's side of the reflink driver, on a real XFS: as root, and as the ordinary user who owns the data."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from lych_checkpoint.drivers import kernel, trees
from lych_checkpoint.drivers.clones import Clones
from lych_checkpoint.errors import Damage
from tests.fixtures.children import in_child
from tests.fixtures.lacking import need_root

_BLOCK = 4096


@pytest.fixture
def shelf(xfs: Path, request: pytest.FixtureRequest) -> Clones:
    """A shelf beside something that looks like a PGDATA which a server left."""
    data = xfs / request.node.name.replace("/", " ") / "data"
    for path in ("global", "base/1", "pg_wal/archive_status", "pg_replslot/a slot", "base/pgsql_tmp"):
        (data / path).mkdir(parents=True)
    data.chmod(0o750)
    for path in ("global/pg_control", "base/1/100", "base/1/pg_internal.init", "postmaster.pid", "pg_wal/1",
                 "pg_wal/2", "pg_replslot/a slot/state", "base/pgsql_tmp/1"):
        (data / path).write_text(f"{path}\n" * 1000)
        (data / path).chmod(0o600)
    (data / "postgresql.conf").symlink_to("/etc/elsewhere")
    os.mkfifo(data / "fifo")
    made = Clones(data)
    made.make()
    return made


def _files(top: Path) -> set[str]:
    return {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}


def test_a_live_server_is_cloned_without_what_belongs_to_the_moment(shelf: Clones) -> None:
    shelf.take("sealed")
    made = shelf.path / "sealed"
    assert _files(made) == {"global/pg_control", "base/1/100", "postgresql.conf"}
    assert (made / "pg_replslot").is_dir()
    assert (made / "base" / "1" / "100").read_text() == (shelf.pgdata / "base" / "1" / "100").read_text()
    assert (made / "postgresql.conf").readlink() == Path("/etc/elsewhere")
    shelf.take_wal("sealed", ["1", "2"], 9000, cut_at=18)
    assert (made / "pg_wal" / "1").read_text() == "pg_wal/1\n" * 1000
    assert (made / "pg_wal" / "2").read_bytes() == b"pg_wal/2\n" * 2 + bytes(9000 - 18)
    shelf.write("sealed", "backup_label", b"label")
    for path in [made, *made.rglob("*")]:
        source = shelf.pgdata / path.relative_to(made)
        if source.exists() and not path.is_symlink():
            assert path.stat().st_mode == source.stat().st_mode, path
            assert (path.stat().st_uid, path.stat().st_gid) == (source.stat().st_uid, source.stat().st_gid)


@pytest.mark.parametrize("segments", [["1", "3"], ["1", "short"]])
def test_wal_that_is_not_whole_is_damage(shelf: Clones, segments: list[str]) -> None:
    (shelf.pgdata / "pg_wal" / "short").write_text("half")
    shelf.take("sealed")
    with pytest.raises(Damage, match=segments[-1]):
        shelf.take_wal("sealed", segments, 9000, cut_at=1)


@pytest.mark.parametrize("tamper", ["write", "append", "remove", "add", "chmod", "same bytes"])
def test_changed_content_changes_the_generation(shelf: Clones, tamper: str) -> None:
    shelf.take("sealed")
    shelf.close("sealed", read_only=True)
    before, found = shelf.generation("sealed"), shelf.find("sealed")
    shelf.unfold("sealed", "stage-1")
    assert (shelf.generation("sealed"), shelf.find("sealed")) == (before, found), "restoring from it is no change"
    file = shelf.path / "sealed" / "base" / "1" / "100"
    status = file.stat()
    if tamper in ("write", "same bytes"):
        text = file.read_bytes()
        with file.open("r+b") as opened:
            opened.write(text if tamper == "same bytes" else text.upper())
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the least a forger would do
    elif tamper == "append":
        with file.open("ab") as opened:
            opened.write(b"more")
    elif tamper == "remove":
        file.unlink()
    elif tamper == "add":
        (file.parent / "101").touch()
    else:
        file.chmod(0o640)
    assert shelf.generation("sealed") != before
    assert shelf.find("sealed") == found


def test_an_exchange_swaps_the_data_and_not_the_identities(shelf: Clones) -> None:
    shelf.take("sealed")
    shelf.close("sealed", read_only=True)
    staged = shelf.unfold("sealed", "stage-1")
    assert not staged.read_only
    live, file = shelf.live(), shelf.pgdata / "base" / "1" / "100"
    file.write_text("two")
    shelf.swap("stage-1")
    assert shelf.live() == staged
    assert file.read_text() != "two"
    assert shelf.find("stage-1") == live
    shelf.move("stage-1", "displaced-1")
    assert shelf.close("displaced-1", read_only=True).uuid == live.uuid
    assert (shelf.path / "displaced-1").stat().st_mode & 0o777 == 0o550


def test_a_copy_whose_own_place_vanishes_is_none(shelf: Clones) -> None:
    def vanish(path: str) -> bool:
        if path == "base":
            shutil.rmtree(shelf.path / "sealed")
        return True

    with shelf.opened() as top, kernel.directory(shelf.pgdata) as live, pytest.raises(FileNotFoundError):
        trees.copy(live, top, "sealed", vanish, "global/pg_control")


def test_what_root_notes_is_the_owners(shelf: Clones) -> None:
    need_root()
    nobody = pwd.getpwnam("nobody")
    for path in (shelf.pgdata, shelf.path):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    shelf.note("base", {"base": "x"})
    found = (shelf.path / "base.json").stat()
    assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert shelf.noted("base") == {"base": "x"}


def test_no_two_files_are_called_the_same(shelf: Clones) -> None:
    seen = set()
    for _ in range(20):  # the inode number comes again at once, its generation does not
        shelf.take("one")
        found = shelf.find("one")
        assert found is not None
        seen.add(found.uuid)
        shelf.remove("one")
    assert len(seen) == 20


def test_pieces_are_counted(shelf: Clones) -> None:
    with (shelf.pgdata / "pieces").open("wb") as file:
        os.pwrite(file.fileno(), b"x" * _BLOCK, 0)
        os.fsync(file.fileno())
        assert kernel.extents(file.fileno()) == 1
        for n in range(100):
            os.pwrite(file.fileno(), b"x" * _BLOCK, 2 * n * _BLOCK)
        os.fsync(file.fileno())
        assert kernel.extents(file.fileno()) >= 100


def test_an_ordinary_user_can_do_all_of_it_with_his_own_data(shelf: Clones) -> None:
    def whole_life() -> None:
        shelf.take("sealed")
        shelf.take_wal("sealed", ["1"], 9000, cut_at=5)
        shelf.close("sealed", read_only=True)
        shelf.unfold("sealed", "stage-1")
        shelf.swap("stage-1")
        shelf.move("stage-1", "displaced-1")
        shelf.close("displaced-1", read_only=True)
        shelf.remove("displaced-1")
        shelf.remove("sealed")
        shelf.remove("sealed")

    uid = None
    if os.geteuid() == 0:
        uid = pwd.getpwnam("nobody").pw_uid
        for path in (shelf.pgdata.parent, shelf.pgdata, *shelf.pgdata.rglob("*"), shelf.path):
            os.chown(path, uid, uid, follow_symlinks=False)
        shelf.pgdata.parent.parent.chmod(0o755)
    assert in_child(whole_life, uid=uid) is None
    assert list(shelf.path.iterdir()) == []
