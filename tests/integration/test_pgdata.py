"""`init --pgdata`, and what /etc/fstab says of the subvolume that it made."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from lych_checkpoint.drivers import btrfs_calls, fstab, kernel, pgdata
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.process import Owner
from lych_checkpoint.soul import Soul
from ops.servers.celery import command
from ops.servers.postgres import PostgresNode
from tests.fixtures.children import in_child
from tests.fixtures.lacking import need_root

_CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def directory(btrfs: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the user who is to run the server."""
    made = btrfs / request.node.name.replace("/", " ")
    made.mkdir(mode=0o755)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(made, nobody.pw_uid, nobody.pw_gid)
    return made


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fstab, "_FSTAB", tmp_path / "fstab")
    return tmp_path / "fstab"


def facts(path: Path) -> tuple[bool, bool, int, int]:
    """Return whether it is a subvolume, whether it has +C, its owner and its mode."""
    with kernel.directory(path) as top:
        found = os.fstat(top)
        return btrfs_calls.is_subvolume(top), kernel.is_no_cow(top), found.st_uid, found.st_mode & 0o777


def init(*argv: str | Path) -> tuple[int, dict]:
    """Run the verb without any setting, as before there is a server."""
    done = command("lych_checkpoint", "init", "--json", "--pgdata", *map(str, argv), cwd=Path("/"), timeout_s=60,
                   environment={"PYTHONPATH": str(_CHECKOUT)})
    return done.returncode, json.loads(done.stdout)


def test_a_server_in_what_it_makes_is_one_for_btrfs(directory: Path, table: Path) -> None:
    owner = Owner.of(directory)
    path = directory / "pgdata"
    code, said = init(path)
    assert (code, said["made"], said["owner"]) == (0, True, str(owner)), said
    assert facts(path) == (True, True, owner.uid, 0o700)
    assert init(path) == (0, {**said, "made": False})
    with PostgresNode.start_new(directory) as node:
        ground = Ground(url=node.url(), pgdata=path, pg_bin=node.pg_bin)
        soul = Soul.open(ground, "btrfs", "refuse")
        assert [one for one in soul.preflight() if "+C" in one] == []
        assert init(path) == (0, {**said, "made": False})
        with kernel.directory(path) as top:
            number = btrfs_calls.info(top).number
        table.write_text(f"LABEL=nobody_finds_it /srv btrfs subvolid={number}")
        unfit = dict(Soul.reports(ground))["btrfs"]
        assert unfit is not None
        assert "fstab" in unfit.what
        assert f"subvolid={number}" in unfit.mend


def test_root_says_whose_it_is_where_the_directory_is_roots(directory: Path) -> None:
    need_root()
    os.chown(directory, 0, 0)
    code, said = init(directory / "pgdata")
    assert (code, said["error"]["mend"]) == (1, "say --owner USER")
    code, said = init(directory / "pgdata", "--owner", "nobody")
    assert (code, said["owner"]) == (0, "nobody"), said
    assert facts(directory / "pgdata") == (True, True, pwd.getpwnam("nobody").pw_uid, 0o700)
    assert init(directory / "other", "--owner", "no such user")[0] == 2


def test_an_ordinary_user_makes_his_own(directory: Path) -> None:
    owner = Owner.of(directory)
    uid = owner.uid if os.geteuid() == 0 else None
    for _ in range(2):
        assert in_child(lambda: pgdata.make(directory / "pgdata", None), uid=uid) is None
    assert facts(directory / "pgdata") == (True, True, owner.uid, 0o700)
    if uid is not None:
        refused = in_child(lambda: pgdata.make(directory / "roots", Owner(0, 0)), uid=uid)
        assert isinstance(refused, Refused)
        assert refused.code == "needs-owner"


def test_what_a_killed_one_left_is_finished(directory: Path) -> None:
    with kernel.directory(directory) as beside:
        btrfs_calls.create(beside, "pgdata")
    assert pgdata.make(directory / "pgdata", None) == (Owner.of(directory), True)
    assert facts(directory / "pgdata")[1:] == (True, Owner.of(directory).uid, 0o700)
    (directory / "empty").mkdir()
    pgdata.make(directory / "empty", None)
    assert facts(directory / "empty")[:2] == (True, True)


@pytest.mark.parametrize("place", ["full", "full subvolume", "file", "link", "mount point", "elsewhere", "nowhere"])
def test_a_place_that_does_not_do_is_refused_and_left_as_it_is(directory: Path, tmp_path: Path, place: str) -> None:
    path = directory / place
    if place == "full":
        path.mkdir()
        (path / "kept").touch()
    elif place == "full subvolume":
        with kernel.directory(directory) as beside:
            btrfs_calls.create(beside, place)
        (path / "kept").touch()
    elif place == "file":
        path.touch()
    elif place == "link":
        path.symlink_to(tmp_path)
    elif place == "mount point":
        need_root()
        path.mkdir()
        subprocess.run(["mount", "--bind", path, path], check=True)
    elif place == "elsewhere":
        path = tmp_path / "pgdata"
    else:
        path = directory / "missing" / "pgdata"
    before = sorted(directory.rglob("*"))
    try:
        with pytest.raises(Refused) as caught:
            pgdata.make(path, Owner.of(directory))
    finally:
        if place == "mount point":
            subprocess.run(["umount", path], check=True)
    assert caught.value.code == "pgdata"
    assert caught.value.mend
    assert sorted(directory.rglob("*")) == before


def test_a_subvolume_that_fstab_mounts_by_number_is_told(directory: Path, table: Path) -> None:
    pgdata.make(directory / "pgdata", None)
    with kernel.directory(directory / "pgdata") as top:
        mine, number = btrfs_calls.file_system(top), btrfs_calls.info(top).number
    dashed = f"{mine[:8]}-{mine[8:12]}-{mine[12:16]}-{mine[16:20]}-{mine[20:]}"
    assert fstab.by_number(mine, number) is None
    for line, told in (
        (f"UUID={dashed} /srv btrfs rw,subvolid={number} 0 0", True),
        (f"LABEL=what\\040nobody\\040finds /srv btrfs subvolid={number} 0 0", True),
        (f"UUID={dashed} /srv btrfs subvol=/pgdata 0 0", False),
        (f"UUID={dashed} /srv btrfs subvolid={number}1 0 0", False),
        (f"UUID=00000000-0000-0000-0000-000000000000 /srv btrfs subvolid={number} 0 0", False),
        (f"/dev/null /srv btrfs subvolid={number} 0 0", not Path("/sys/fs/btrfs", dashed).is_dir()),
        (f"# UUID={dashed} /srv btrfs subvolid={number} 0 0", False),
    ):
        table.write_text(f"\n{line}\nproc /proc proc\n")
        assert fstab.by_number(mine, number) == ("/srv" if told else None), line
