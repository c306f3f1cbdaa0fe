"""What the drivers that copy files refuse or say before the freeze, and once more in the window."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers.base import Ground, Unfit
from lych_checkpoint.errors import Refused
from lych_checkpoint.soul import Soul
from ops.contract.place import captured
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import PostgresNode
from tests.fixtures.children import in_child
from tests.fixtures.client import wait_until
from tests.fixtures.lacking import need_root

_numbers = itertools.count()
#: The file system on which each driver works.
DISKS = {"btrfs": "btrfs", "reflink": "xfs", "pitr": "ext4"}


@dataclass
class Place:
    """A server on which `driver` works, and a database of the test's own."""

    driver: str
    node: PostgresNode
    url: str

    @property
    def ground(self) -> Ground:
        return Ground(url=self.url, pgdata=self.node.pgdata, pg_bin=self.node.pg_bin)

    def soul(self, writers: Any = "refuse") -> Soul:
        return Soul.open(self.ground, self.driver, writers)

    def unfit(self, **changed: Any) -> Unfit | None:
        """Return what the driver's probe says, with other settings."""
        return dict(Soul.reports(replace(self.ground, **changed)))[self.driver]

    def say(self, *statements: str) -> None:
        with connect(self.url) as connection:
            for statement in statements:
                rows(connection, statement)  # type: ignore[arg-type]

    def refusal(self) -> Refused:
        """Return what preflight refuses."""
        with pytest.raises(Refused) as caught:
            self.soul().preflight()
        return caught.value


@pytest.fixture(scope="module", params=DISKS)
def node(request: pytest.FixtureRequest) -> Iterator[tuple[str, PostgresNode]]:
    directory: Path = request.getfixturevalue(DISKS[request.param]) / "a server"
    directory.mkdir(mode=0o711)
    if request.param == "btrfs":
        make_pgdata_subvolume(directory / "pgdata")
    with PostgresNode.start_new(directory, options={"wal_level": "logical"}) as made:
        yield request.param, made


@pytest.fixture
def place(node: tuple[str, PostgresNode]) -> Iterator[Place]:
    driver, server = node
    name = f"soul{next(_numbers)}"
    server.run("psql", "-qc", f"create database {name}", "postgres")
    yield Place(driver, server, server.url(name))
    server.run("psql", "-qc", f"drop database {name} with (force)", "postgres")


@contextmanager
def tablespace(place: Place) -> Iterator[None]:
    directory = place.node.pgdata.parent / "elsewhere"
    directory.mkdir()
    os.chown(directory, place.node.owner.uid, place.node.owner.gid)
    name = f"ts{next(_numbers)}"
    place.say(f"CREATE TABLESPACE {name} LOCATION '{directory}'")
    try:
        yield
    finally:
        place.say(f"DROP TABLESPACE {name}")
        shutil.rmtree(directory)


@contextmanager
def rows_in_an_unlogged_table(place: Place) -> Iterator[None]:
    place.say("INSERT INTO scratch VALUES (1)")
    yield


@pytest.mark.parametrize(("code", "made"), [
    ("unlogged", rows_in_an_unlogged_table), ("tablespace", tablespace)])
def test_what_comes_while_the_freeze_drains_is_refused_in_the_window(
    place: Place, tmp_path: Path, code: str, made: Callable[[Place], Any]
) -> None:
    place.say("CREATE UNLOGGED TABLE scratch (n int)", "INSERT INTO scratch VALUES (1)", "DELETE FROM scratch")
    soul = place.soul()
    soul.preflight()
    with soul.capturing("drained", tmp_path / "soul") as capture:
        with made(place), pytest.raises(Refused) as caught:
            capture.begin()
        assert caught.value.code == code
    shelf = place.node.pgdata.parent / ".lych-pgdata"
    assert not list(shelf.glob("drained*"))


def test_noted_writers_do_not_hide_what_they_wrote(place: Place, tmp_path: Path) -> None:
    place.say("CREATE UNLOGGED TABLE scratch (n int)")
    with place.soul("note").capturing("noted", tmp_path / "soul") as capture:
        capture.begin()
        place.say("INSERT INTO scratch VALUES (1)")
        capture.take()
        with pytest.raises(Refused) as caught:
            capture.end()
        assert caught.value.code == "unlogged"


def test_rows_that_a_policy_hides_are_no_proof_that_there_are_none(place: Place) -> None:
    place.say("CREATE UNLOGGED TABLE scratch (n int)", "INSERT INTO scratch VALUES (1)",
              "ALTER TABLE scratch ENABLE ROW LEVEL SECURITY", "DROP ROLE IF EXISTS blind",
              "CREATE ROLE blind LOGIN REPLICATION PASSWORD 'x'; GRANT pg_checkpoint TO blind;"
              "GRANT SELECT ON scratch TO blind;"
              "GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop, pg_create_restore_point TO blind")
    blind = replace(place, url=make_conninfo(place.url, user="blind", password="x"))
    try:
        assert "row-level security" in str(blind.refusal())
    finally:
        place.say("DROP OWNED BY blind; DROP ROLE blind")


def test_a_tablespace_that_came_and_went_is_in_no_copys_wal(place: Place, tmp_path: Path) -> None:
    """A recovery would make it again: in a place that is gone, or worse in one that is in use."""
    soul = place.soul()
    with pytest.raises(Refused) as caught, soul.capturing("c1", tmp_path / "1") as capture:
        with tablespace(place):
            pass
        capture.begin()
        capture.take()
        capture.end()
        capture.finish()
    assert caught.value.code == "tablespace"
    facts = captured(soul, "c2", tmp_path / "2")
    assert soul.verify(facts, tmp_path / "2", deep=True) == []
    soul.discard(facts)


def test_slots_are_named_and_do_not_come_back(place: Place, tmp_path: Path) -> None:
    place.say("SELECT pg_create_physical_replication_slot('standby', true)",
              "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')")
    soul = place.soul()
    try:
        said = [one for one in soul.preflight() if "does not come back" in one]
        assert [one.partition(" does")[0] for one in said] == [
            "the logical replication slot feed", "the physical replication slot standby"]
        facts = captured(soul, "c", tmp_path / "soul")
        staged = soul.stage(facts, tmp_path / "soul", "t")
        with soul.opened(staged) as url, connect(url) as connection:
            assert rows(connection, "SELECT slot_name FROM pg_replication_slots WHERE NOT starts_with("
                                    "slot_name::text, 'lych_')") == []
        soul.discard_stage(staged)
        soul.discard(facts)
    finally:
        place.say("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def test_who_reads_the_wal_without_a_slot_would_go_on_with_other_wal(place: Place, tmp_path: Path) -> None:
    def standing() -> set[str]:
        with connect(place.url) as connection:
            return {name for name, in rows(connection, "SELECT application_name FROM pg_stat_replication")}

    reader = subprocess.Popen(
        [place.node.pg_bin / "pg_receivewal", "-D", tmp_path, "-d", make_conninfo("", application_name="reader")],
        env={**os.environ, **place.node.client_environment()}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "reader" in standing())
        if place.driver == "pitr":  # what it restores begins a new timeline, which the reader refuses by itself
            place.soul().preflight()
        else:
            refused = place.refusal()
            assert refused.code == "replica"
            assert "reader at 127.0.0.1" in refused.what
    finally:
        reader.terminate()
        reader.wait()
    wait_until(lambda: not standing())
    place.soul().preflight()


def test_a_subscription_must_be_disabled(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # a publisher that never says a word
        address = f"host=127.0.0.1 port={nobody.getsockname()[1]}"
        place.say(f"CREATE SUBSCRIPTION feed CONNECTION '{address}' PUBLICATION p "
                  "WITH (connect = false, slot_name = NONE)")
        try:
            assert any("feed comes back disabled" in one for one in place.soul().preflight())
            place.say("ALTER SUBSCRIPTION feed SET (slot_name = 'x')", "ALTER SUBSCRIPTION feed ENABLE")
            refused = place.refusal()
            assert (refused.code, refused.mend.partition(",")[0]) == ("subscription",
                                                                      "ALTER SUBSCRIPTION feed DISABLE")
        finally:
            place.say("ALTER SUBSCRIPTION feed DISABLE", "ALTER SUBSCRIPTION feed SET (slot_name = NONE)",
                      "DROP SUBSCRIPTION feed")


def test_the_database_postgres_is_named_only_if_something_is_in_it(place: Place) -> None:
    def named() -> bool:
        return any("postgres" in one and "come back too" in one for one in place.soul().preflight())

    assert not named()
    with connect(place.node.url("postgres")) as connection:
        rows(connection, "CREATE TABLE kept (n int)")
        try:
            assert named()
        finally:
            rows(connection, "DROP TABLE kept")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_mounted_in_pgdata_from_the_same_file_system_is_refused(place: Place, what: str) -> None:
    need_root()
    inside, beside = place.node.pgdata / "a mount", place.node.pgdata.parent / "a source"
    for path in (inside, beside):
        path.mkdir() if what == "directory" else path.touch()
    subprocess.run(["mount", "--bind", beside, inside], check=True)
    try:
        refused = place.refusal()
        assert refused.code == "nested-subvolume"
        assert str(inside) in refused.what
    finally:
        subprocess.run(["umount", inside], check=True)
        for path in (inside, beside):
            path.rmdir() if what == "directory" else path.unlink()
    place.soul().preflight()


def test_two_may_check_the_same_copy_at_once(place: Place, tmp_path: Path) -> None:
    soul = place.soul()
    facts = captured(soul, "c", tmp_path / "soul")
    with ThreadPoolExecutor(2) as pool:
        said = [pool.submit(lambda: place.soul().verify(facts, tmp_path / "soul", deep=True)) for _ in range(2)]
        assert [one.result() for one in said] == [[], []]
    soul.discard(facts)


@pytest.mark.parametrize("node", ["btrfs"], indirect=True)
def test_want_of_memory_is_no_damage(place: Place, server_directory: Path, tmp_path: Path) -> None:
    soul = place.soul()
    facts = captured(soul, "c", tmp_path / "soul")
    wrapper = server_directory / "pg_ctl"
    wrapper.write_text(f'#!/bin/sh\nulimit -v 120000\nexec "{place.node.pg_bin / "pg_ctl"}" "$@"\n')
    wrapper.chmod(0o755)
    server_directory.chmod(0o755)
    poor = Soul.open(replace(place.ground, pg_bin=server_directory), "btrfs", "refuse")
    with pytest.raises(Refused) as caught:
        poor.verify(facts, tmp_path / "soul", deep=True)
    assert caught.value.code == "server-starved", caught.value
    assert soul.verify(facts, tmp_path / "soul", deep=True) == []
    soul.discard(facts)


# What makes a driver unfit: each reason comes with what mends it, and is gone when that was done.


@contextmanager
def _moved_out(place: Place, name: str) -> Iterator[None]:
    """Have a symlink in place of a directory, while the server stands still."""
    inside, outside = place.node.pgdata / name, place.node.pgdata.parent / f"outside {name}"
    place.node.stop()
    subprocess.run(["mv", inside, outside], check=True)  # it keeps owners, across subvolumes too
    inside.symlink_to(outside)
    try:
        place.node.start()
        yield
    finally:
        place.node.stop()
        inside.unlink()
        subprocess.run(["mv", outside, inside], check=True)
        place.node.start()


@contextmanager
def _unchecked(place: Place) -> Iterator[None]:
    place.node.stop()
    owner = {"user": place.node.owner.uid, "group": place.node.owner.gid, "extra_groups": []} if _root() else {}

    def checksums(word: str) -> None:
        subprocess.run([place.node.pg_bin / "pg_checksums", word, "-N", "-D", place.node.pgdata], check=True, cwd="/",
                       stdout=subprocess.DEVNULL, **owner)

    checksums("--disable")
    place.node.start()
    try:
        yield
    finally:
        place.node.stop()
        checksums("--enable")
        place.node.start()


@contextmanager
def _standby(place: Place) -> Iterator[None]:
    signal = place.node.pgdata / "standby.signal"
    place.node.stop()
    signal.touch()
    try:
        place.node.start()
        yield
    finally:
        place.node.stop()
        signal.unlink()
        place.node.start()


def _root() -> bool:
    return os.geteuid() == 0


@pytest.mark.parametrize(("state", "what", "mend"), [
    (lambda place: _moved_out(place, "pg_wal"), "pg_wal lies outside", "move it back"),
    (tablespace, "the tablespace .* lies outside", "SET TABLESPACE pg_default"),
    (_unchecked, "checksums are off", "pg_checksums --enable"),
    (_standby, "is a standby", "primary"),
], ids=["pg_wal", "tablespace", "checksums", "standby"])
def test_a_state_of_the_cluster_that_does_not_do_is_told_with_what_mends_it(
    place: Place, state: Callable[[Place], Any], what: str, mend: str
) -> None:
    assert place.unfit() is None
    with state(place):
        unfit = place.unfit()
        assert unfit is not None
        assert re.search(what, unfit.what)
        assert mend in unfit.mend
        with pytest.raises(Refused) as caught:
            place.soul()
        assert (caught.value.code, caught.value.mend) == ("driver-unavailable", unfit.mend)
    assert place.unfit() is None


def test_a_setting_that_does_not_do_is_told_with_what_mends_it(place: Place, tmp_path: Path) -> None:
    place.say("DROP ROLE IF EXISTS stranger", "CREATE ROLE stranger LOGIN PASSWORD 'x'")
    stranger = make_conninfo(place.url, user="stranger", password="x")
    for changed, what, mend in (
        ({"url": make_conninfo(place.url, host="0.0.0.0")}, "on another machine", "LYCH_DRIVER=dump"),
        ({"pgdata": tmp_path}, "is on no|the server runs in|belongs to|PG_VERSION", ""),
        ({"pgdata": place.node.pgdata / "missing"}, "No such file", "LYCH_PGDATA"),
        ({"pg_bin": tmp_path}, "pg_ctl was not found", "LYCH_PG_BIN"),
        ({"url": stranger, "pgdata": None}, "may not see data_directory", "LYCH_PGDATA"),
        ({"url": stranger}, "may not run CHECKPOINT", "GRANT pg_checkpoint TO stranger"),
    ):
        unfit = place.unfit(**changed)
        assert unfit is not None, changed
        assert re.search(what, unfit.what), (changed, unfit)
        assert unfit.mend
        assert mend in unfit.mend


def test_a_disk_that_does_not_do_is_told_with_what_to_use(btrfs: Path, ext4: Path) -> None:
    """Each driver on a cluster that stands where it cannot work: no Btrfs, no subvolume, no clones."""
    for disk, unfit_here in ((btrfs, {"btrfs": "no subvolume of its own"}),
                             (ext4, {"btrfs": "on no Btrfs", "reflink": "cannot clone files"})):
        directory = disk / "no place"
        directory.mkdir(mode=0o711)
        with PostgresNode.start_new(directory) as node:
            reports = dict(Soul.reports(Ground(url=node.url(), pgdata=node.pgdata, pg_bin=node.pg_bin)))
        for driver, what in unfit_here.items():
            unfit = reports[driver]
            assert unfit is not None
            assert what in unfit.what
            assert unfit.mend, unfit
        if disk == btrfs:
            assert "init --pgdata" in str(reports["btrfs"])


def test_pgdata_that_is_a_mount_point_is_told_with_the_place_below_it(place: Place) -> None:
    need_root()
    subprocess.run(["mount", "--bind", place.node.pgdata, place.node.pgdata], check=True)
    try:
        unfit = place.unfit()
        assert unfit is not None
        assert "mount point" in unfit.what
        assert str(place.node.pgdata / "data") in unfit.mend
    finally:
        subprocess.run(["umount", place.node.pgdata], check=True)


def test_a_user_who_is_not_the_owner_is_told_of_the_helper(place: Place) -> None:
    need_root()

    def tell() -> None:
        raise RuntimeError(str(place.unfit()))

    said = str(in_child(tell, uid=23456))
    assert "LYCH_HELPER" in said or "cannot be looked at" in said, said


@pytest.mark.parametrize("node", ["btrfs"], indirect=True)
def test_a_nested_subvolume_is_refused_and_a_missing_no_cow_named(place: Place) -> None:
    inner = place.node.pgdata / "base" / "inner"
    make_pgdata_subvolume(inner)
    try:
        assert place.refusal().code == "nested-subvolume"
    finally:
        inner.rmdir()
    subprocess.run(["chattr", "-C", place.node.pgdata], check=True)
    try:
        assert any("+C" in one for one in place.soul().preflight())
    finally:
        subprocess.run(["chattr", "+C", place.node.pgdata], check=True)
