"""LYCH_HELPER: workers as one user, PGDATA of another, and a program in between that believes nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import inspection, status
from lych_checkpoint.coordinator import Request, create
from lych_checkpoint.doctor import doctor
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.drivers.reflink import ReflinkDriver
from lych_checkpoint.federation import Federation
from lych_checkpoint.settings import Settings
from lych_checkpoint.setup import init
from lych_checkpoint.soul import Soul
from ops.servers.filesystems import make_pgdata_subvolume
from ops.servers.postgres import PostgresNode
from tests.fixtures import killed
from tests.fixtures.client import wait_until
from tests.fixtures.lacking import lacks, need_root
from tests.fixtures.places import open_directory
from tests.fixtures.workers import Answer

_CHECKOUT = Path(__file__).parents[2]
#: The workers' user: any that is neither root nor PGDATA's owner.
_WORKER = 23456
# What sudo does for a fixed command line, in a few lines: it becomes the file's owner and runs just one program.
_WRAPPER = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>
int main(void) {
  if (setresgid(getegid(), getegid(), getegid()) || setresuid(geteuid(), geteuid(), geteuid())) return 70;
  clearenv();
  setenv("PYTHONPATH", "%s", 1);
  setenv("LD_LIBRARY_PATH", "%s", 1);
  execl("%s", "%s", "-m", "lych_checkpoint.helper", "--config", "%s", (char *)0);
  return 71;
}
"""


@dataclass(frozen=True)
class Two:
    """A federation of one user on a cluster of another."""

    node: PostgresNode
    url: str
    environment: dict[str, str]
    within: tuple[str, ...]
    helper: Path
    config: Path
    work: Path
    home: Path

    @property
    def checkpoints(self) -> Path:
        """Where the vault keeps them, as seen from outside."""
        return self.work / "vault" / "checkpoints"

    def lych(
        self, *argv: str, user: int = _WORKER, wait: bool = True, **environment: str
    ) -> Answer | subprocess.Popen[str]:
        """Run `lych-checkpoint` as ``user``."""
        command = [*self.within, str(user), "-m", "lych_checkpoint", *argv]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LYCH_")}
        child = subprocess.Popen(command, env={**kept, **self.environment, **environment}, cwd="/",
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not wait:
            return child
        out, err = child.communicate(timeout=120)
        return Answer(child.returncode, out, err)

    def asked(self, **question: object) -> dict:
        """Ask the helper one question as anybody may who can run it."""
        become = f"import os; os.execl({str(self.helper)!r}, 'helper')"
        done = subprocess.run([*self.within, str(_WORKER), "-c", become], input=json.dumps(question) + "\n",
                              capture_output=True, text=True, timeout=60, check=False)
        return json.loads(done.stdout)

    def killed(self, step: str, user: int) -> None:
        """Run a create that kills itself at ``step``, see `tests.fixtures.killed`; of root in a fork of ours."""
        if user == 0:
            status = killed.fork(self.federation(), step)
        else:
            command = [*self.within, str(user), "-m", "tests.fixtures.killed", step]
            kept = {name: value for name, value in os.environ.items() if not name.startswith("LYCH_")}
            status = subprocess.run(command, env={**kept, **self.environment}, cwd="/", timeout=120, check=False,
                                    capture_output=True).returncode
        assert status == -signal.SIGKILL, step

    def federation(self) -> Federation:
        """Open it in this process, as root and without its mounts."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                if name.startswith("LYCH_"):
                    patch.setenv(name, value.replace(str(self.home / "work"), str(self.work)))
            return Federation(Settings.load())

    def copies(self) -> list[str]:
        """What lies beside PGDATA."""
        shelf = self.node.pgdata.parent / f".lych-{self.node.pgdata.name}"
        return sorted(path.name for path in shelf.iterdir()) if shelf.exists() else []

    def captured(self) -> set[str]:
        """What lies there of checkpoints: all but what `pitr` shares among them."""
        return {name.removesuffix(".json").removesuffix(".making") for name in self.copies()
                if not name.startswith(("base", "wal-"))}


@pytest.fixture(params=["btrfs", "reflink", "pitr"])
def two(
    request: pytest.FixtureRequest, federation_root: Path, redis_url: str,
) -> Iterator[Two]:
    """Set the two users up, on the file system that the driver wants."""
    need_root()
    if shutil.which("gcc") is None or shutil.which("setpriv") is None:
        lacks("needs gcc and setpriv")
    disk: Path = request.getfixturevalue({"btrfs": "btrfs", "reflink": "xfs", "pitr": "ext4"}[request.param])
    with ExitStack() as stack:
        home = stack.enter_context(open_directory())
        cluster = disk / f"of the owner {request.node.name}"
        cluster.mkdir(mode=0o711)
        if request.param == "btrfs":
            make_pgdata_subvolume(cluster / "pgdata")
        node = stack.enter_context(PostgresNode.start_new(cluster))
        os.chown(cluster, node.owner.uid, node.owner.gid)
        node.run("createdb", "soul")
        # The interpreter may lie where only root may go: everything is seen through mounts of the command's own.
        places = {"python": Path(sys.base_prefix), "packages": Path(psycopg.__file__).parents[1],
                  "checkout": _CHECKOUT, "work": federation_root.parent}
        for name in places:
            (home / name).mkdir()
        python = home / "python" / "bin" / Path(sys.executable).resolve().name
        path = f"{home / 'checkout'}:{home / 'packages'}"
        config, helper = home / "helper.toml", home / "lych-helper"
        config.write_text(f'pgdata = "{node.pgdata}"\ndatabase_url = "{node.url("soul")}"\n'
                          f'pg_bin = "{node.pg_bin}"\n')
        os.chown(config, node.owner.uid, node.owner.gid)
        config.chmod(0o600)
        (home / "wrapper.c").write_text(_WRAPPER % (path, home / "python/lib", python, python, config))
        subprocess.run(["gcc", "-o", helper, home / "wrapper.c"], check=True)
        os.chown(helper, node.owner.uid, node.owner.gid)
        helper.chmod(0o6755)
        for root, folders, files in os.walk(federation_root):
            for name in (*folders, *files, "."):
                os.chown(Path(root) / name, _WORKER, _WORKER, follow_symlinks=False)
        os.chown(federation_root.parent, _WORKER, _WORKER)
        mounts = " && ".join(f"mount --bind '{source}' '{home / name}'" for name, source in places.items())
        become = f'user=$1 && shift && exec setpriv --reuid $user --regid $user --clear-groups {python} "$@"'
        within = ("unshare", "--mount", "sh", "-c", f"{mounts} && {become}", "sh")
        yield Two(node, node.url("soul"), {
            "PYTHONPATH": path, "LD_LIBRARY_PATH": str(home / "python/lib"), "HOME": str(home),
            "LYCH_FEDERATION": "two", "LYCH_REDIS_URL": redis_url,
            "LYCH_DATABASE_URL": node.url("soul"), "LYCH_ROOT": str(home / "work" / federation_root.name),
            "LYCH_VAULT": str(home / "work" / "vault"), "LYCH_PGDATA": str(node.pgdata),
            "LYCH_PG_BIN": str(node.pg_bin), "LYCH_DRIVER": request.param, "LYCH_HELPER": json.dumps([str(helper)]),
        }, within, helper, config, federation_root.parent, home)


def test_capture_by_the_helper_and_restore_by_root(two: Two, federation_root: Path) -> None:
    with psycopg.connect(two.url) as connection:
        connection.execute("create table kept as select 1 as number")
    assert two.lych("init").code == 0
    doctor = two.lych("doctor")
    assert f"{two.environment['LYCH_DRIVER']}: usable" in doctor.out, doctor.out
    made = two.lych("create", "--here", "--json")
    assert made.code == 0, made.out + made.err
    assert made.json["driver"] == two.environment["LYCH_DRIVER"]
    assert made.json["id"] in two.copies()
    assert two.lych("verify", "--deep").code == 0
    with psycopg.connect(two.url) as connection:
        connection.execute("update kept set number = 2")
    refused = two.lych("restore", "latest", "--yes", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "needs-owner"), refused.out
    restored = two.lych("restore", "latest", "--yes", "--json", user=0)
    assert restored.code == 0, restored.out + restored.err
    with psycopg.connect(two.url) as connection:
        assert connection.execute("select number from kept").fetchone() == (1,)
    for user in (0, _WORKER):
        again = two.lych("create", "--here", "--json", user=user)
        assert again.code == 0, again.out + again.err
    owner = (two.node.owner.uid, two.node.owner.gid)
    shelf = two.node.pgdata.parent / f".lych-{two.node.pgdata.name}"
    strangers = [path for place, owned in ((two.node.pgdata, owner), (shelf, owner),
                                           (federation_root, (_WORKER, _WORKER)),
                                           (federation_root.parent / "vault", (_WORKER, _WORKER)))
                 for path in (place, *place.rglob("*")) if (path.lstat().st_uid, path.lstat().st_gid) != owned]
    assert [str(path) for path in strangers] == []


@pytest.mark.parametrize("two", ["pitr"], indirect=True)
def test_the_helper_believes_nobody(two: Two, tmp_path: Path) -> None:
    driver = two.environment["LYCH_DRIVER"]
    good = {"snapshot": "20260101T000000000000Z-abcdef", "uuid": "x", "generation": 1}

    def code(**question: object) -> str:
        return str(two.asked(driver=driver, **question)["error"]["code"])

    assert two.asked(driver=driver, verb="probe") == {"done": None}
    assert code(verb="stage") == "helper-odd"
    assert code(verb="capture") == "helper-odd"
    for name in ("../pgdata", "/etc/passwd", "stage-1", "", 7, "20260101T000000000000Z-abcdef/.."):
        assert code(verb="prepare", checkpoint=name) == "helper-odd"
        assert code(verb="discard", evidence={**good, "snapshot": name}) == "helper-odd"
    assert two.asked(driver="dump", verb="probe")["error"]["code"] == "driver-unavailable"
    assert two.lych("init").code == 0
    made = two.lych("create", "--here", "--json")
    assert made.code == 0, made.out + made.err
    other = {"snapshot": made.json["id"], "uuid": "another", "generation": 1, "pgdata": str(tmp_path)}
    assert code(verb="discard", evidence=other) == "other-copy"
    assert made.json["id"] in two.copies()
    two.config.chmod(0o666)
    refused = two.lych("create", "--here", "--json")
    assert refused.code == 1
    assert "others may write it" in refused.json["error"]["what"]


@pytest.mark.parametrize("user", [_WORKER, 0], ids=["helped", "direct"])
def test_any_step_of_a_create_may_be_its_last(two: Two, user: int) -> None:
    assert two.lych("init").code == 0
    driver = two.environment["LYCH_DRIVER"]
    # A helper whose caller dies takes back itself what it did not finish.
    leaves = {"finish": 1, "publish": 1} if user else {
        **({"base": 1} if driver == "pitr" else {}),
        "claim": 1, "take": 1, "capture": 1, "finish": 1, "seal": 1, "publish": 1}
    sealed = []
    for step in leaves:
        two.killed(step, user)
        if step in ("take", "capture"):
            status.thaw(two.federation(), force=True)
        sealed = two.federation().vault.ids()
        assert len(sealed) == (step == "publish")
        # No more than this one's: what the one before it left went before this one began.
        wait_until(lambda step=step: len(two.captured()) == leaves[step])
    made = two.lych("create", "--here", "--json").json if user else create(two.federation(), Request())
    assert two.captured() == {*sealed, made["id"]}
    assert [name for name in two.copies() if name.endswith(".making")] == []
    inspection.verify(two.federation(), sealed[0])
    assert len([name for name in two.copies() if name.startswith("base-")]) == (driver == "pitr")
    assert list(two.checkpoints.glob("*.partial")) == []


@pytest.mark.parametrize("two", ["reflink"], indirect=True)
def test_what_another_driver_left_is_named_and_not_touched(two: Two) -> None:
    init(two.federation())

    def doctor_says() -> dict[str, str]:
        return {one.what: one.mend for one in doctor(two.federation()) if one.what.startswith("a create that died")}

    two.killed("finish", 0)
    (left,) = two.captured()
    what = f"a create that died left {left} beside PGDATA, by the driver reflink"
    assert doctor_says() == {what: "lych-checkpoint create"}
    shutil.rmtree(two.checkpoints / f"{left}.partial")
    two.environment["LYCH_DRIVER"] = "dump"
    create(two.federation(), Request())
    assert two.captured() == {left}
    assert doctor_says() == {what: "LYCH_DRIVER=reflink lych-checkpoint create"}
    # Nor is it touched for another vault: that one may hold it sealed.
    ours = two.environment["LYCH_VAULT"]
    shutil.copytree(two.checkpoints.parent, two.checkpoints.parent.with_name("other"))
    two.environment.update(LYCH_DRIVER="reflink", LYCH_VAULT=ours.replace("vault", "other"))
    assert doctor_says() == {}
    theirs = create(two.federation(), Request())["id"]
    assert two.captured() == {left, theirs}
    two.environment["LYCH_VAULT"] = ours
    made = create(two.federation(), Request())["id"]
    assert two.captured() == {made, theirs}
    assert doctor_says() == {}


@pytest.mark.parametrize("two", ["pitr"], indirect=True)
def test_a_base_that_was_not_done_is_taken_back_with_its_slot(two: Two) -> None:
    init(two.federation())
    two.killed("base", 0)
    (left,) = two.captured()
    assert [name[:5] for name in two.copies()].count("base-") == 1
    assert [one.what for one in doctor(two.federation()) if left in one.what] == [
        f"a create that died left {left} beside PGDATA, by the driver pitr"]
    with psycopg.connect(two.url, autocommit=True) as connection:
        def slots() -> int:
            return connection.execute("select count(*) from pg_replication_slots").fetchone()[0]

        assert slots() == 1
        federation = two.federation()
        Soul.open(federation.ground(), "pitr", "refuse").sweep(federation.vault.ids)
        assert (two.copies(), slots()) == ([], 0)
        made = create(two.federation(), Request())["id"]
        two.killed("finish", 0)
        Soul.open(federation.ground(), "pitr", "refuse").sweep(federation.vault.ids)
        assert (two.captured(), slots()) == ({made}, 1)
    inspection.verify(federation, made)


@pytest.mark.parametrize("two", ["reflink"], indirect=True)
def test_what_a_living_create_makes_is_not_taken_back(two: Two) -> None:
    ground = Ground(url=two.url, pgdata=two.node.pgdata, pg_bin=two.node.pg_bin, owner="the vault")
    making, other = ReflinkDriver(ground), ReflinkDriver(ground)
    making.prepare("one", Path(os.devnull))
    assert other.begun() == {}
    other.take_back("one", sealed=False)
    assert two.captured() == {"one"}
    making.capture()
    making.finish()
    assert other.begun() == {}
    making.abort()
    assert two.captured() == set()


def test_what_a_killed_caller_began_is_taken_back(two: Two) -> None:
    assert two.lych("init").code == 0
    before = two.copies()
    for after_s in (1.5, 2.5):
        child = two.lych("create", "--here", wait=False)
        time.sleep(after_s)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    made = two.lych("create", "--here", "--json")
    assert made.code == 0, made.out
    sealed = {one["id"] for one in two.lych("list", "--json").json["checkpoints"]}
    wait_until(lambda: two.captured() - set(before) == sealed)
    bases = [name for name in two.copies() if name.startswith("base-")]
    assert len(bases) == (two.environment["LYCH_DRIVER"] == "pitr")
