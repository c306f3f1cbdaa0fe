"""One contract over all drivers: what was captured in the window comes back, whatever happened since (I1, I5)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers import DRIVERS, claims
from lych_checkpoint.drivers.base import Evidence, Ground
from lych_checkpoint.drivers.postmaster import Postmaster
from lych_checkpoint.errors import Away, Damage, Refused
from lych_checkpoint.soul import Soul
from ops.contract import cells
from ops.contract import data as soul_data
from ops.contract.cells import Cell
from ops.contract.place import Place, server, unique
from ops.contract.trip import travel
from ops.servers.postgres import PostgresNode
from tests.fixtures.client import wait_until
from tests.fixtures.lacking import lacks
from tests.fixtures.reviving import revive

#: Two of each driver, so that every release meets every driver; the rest, which completes the pairs, goes one trip.
CELLS, MORE = cells.pairwise()[:2 * len(DRIVERS)], cells.pairwise()[2 * len(DRIVERS):]
#: For what does not depend on the server's release, and takes long.
NEWEST = [cell for cell in CELLS if cell.release == max(cells.RELEASES)]


def on(some: list[Cell]) -> pytest.MarkDecorator:
    """Run a test on these cells."""
    return pytest.mark.parametrize("node", some, indirect=True, scope="module", ids=str)


newest = on(NEWEST)


@pytest.fixture(scope="module", params=CELLS, ids=str)
def node(request: pytest.FixtureRequest) -> Iterator[tuple[str, PostgresNode]]:
    cell = request.param
    if cell.pg_bin is not None and not cell.pg_bin.exists():
        lacks(f"needs PostgreSQL {cell.release} in {cell.pg_bin}")
    with server(cell, request.getfixturevalue(cell.file_system)) as made:
        yield cell.driver, made


@pytest.fixture
def place(node: tuple[str, PostgresNode], tmp_path: Path) -> Place:
    return Place.made(*node, tmp_path)


def test_the_cells_hold_every_pair_of_values() -> None:
    def pairs(some: list[Cell]) -> set[tuple[object, object]]:
        return {pair for cell in some
                for pair in itertools.combinations((cell.driver, cell.release, cell.file_system), 2)}

    assert pairs(CELLS + MORE) == pairs(cells.fitting())
    assert {(cell.driver, cell.release) for cell in CELLS} == set(itertools.product(DRIVERS, cells.RELEASES))


@on(CELLS + MORE)
def test_the_soul_comes_back_as_it_was_in_the_window(place: Place) -> None:
    trip = travel(place)
    assert trip.wrong == ()
    assert any("app.total" in warning for warning in trip.warned) == (place.driver == "dump")


@newest
def test_every_step_may_be_done_twice_and_undone(place: Place) -> None:
    soul = place.soul()
    frozen = soul_data.picture(place.url)
    facts, folder = place.captured(soul)
    soul_data.ruin(place.url)
    ruined = soul_data.picture(place.url)
    ticket = unique("t")
    place.staged(soul, facts, folder, ticket)
    staged = place.staged(soul, facts, folder, ticket)
    for _ in range(2):
        soul.shut_out()
        soul.shut_out()
        soul.switch(staged)
        soul.switch(staged)
        assert soul_data.picture(place.url) == frozen
        soul.switch_back(staged)
        soul.switch_back(staged)
        soul.let_in()
        soul.let_in()
        assert soul_data.picture(place.url) == ruined
    soul.discard_stage(staged)
    soul.discard_stage(staged)
    assert soul_data.picture(place.url) == ruined
    assert soul.verify(facts, folder) == []


@newest
def test_a_kill_in_the_middle_of_staging_leaves_nothing_that_the_plan_does_not_name(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    before = soul_data.picture(place.url)
    ticket = unique("t")
    plan = soul.plan_stage(facts, ticket)
    soul.stage(facts, folder, ticket)
    fresh = Soul.reopen(Ground(url=place.url, pg_bin=place.node.pg_bin), place.driver, plan)
    fresh.discard_stage(plan)
    assert _left(place, ticket) == []
    assert soul_data.picture(place.url) == before


@on([cell for cell in NEWEST if cell.driver in ("reflink", "pitr")])  # others make no copy by file
@pytest.mark.parametrize("later", [0, 1])
def test_a_copy_that_is_no_cluster_yet_is_removed_like_any(place: Place, later: int) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    ticket = unique("t")
    plan = soul.plan_stage(facts, ticket)
    seen: list[str] = []

    def kill_soon(event: str, arguments: tuple[object, ...]) -> None:
        if seen or (event == "open" and arguments[0] == "PG_VERSION" and int(str(arguments[2])) & os.O_CREAT):
            seen.append(event)
            if len(seen) > later:
                os.kill(os.getpid(), signal.SIGKILL)

    _killed_after(30, lambda: (sys.addaudithook(kill_soon), soul.stage(facts, folder, ticket)))
    assert _left(place, ticket)
    fresh = Soul.reopen(Ground(url=place.url, pg_bin=place.node.pg_bin), place.driver, plan)
    fresh.discard_stage(plan)
    assert _left(place, ticket) == []


@newest
def test_what_was_displaced_can_be_sealed_and_restored_again(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    soul_data.ruin(place.url)
    ruined = soul_data.picture(place.url)
    first, second = unique("t"), unique("t")
    staged = place.staged(soul, facts, folder, first)
    soul.shut_out()
    soul.switch(staged)
    soul.let_in()
    safety = soul.displaced(staged, facts)
    assert soul.displaced(staged, facts) == safety
    assert soul.verify(safety, place.into, deep=place.driver == "dump") == []
    soul.discard_stage(staged)
    assert soul.verify(safety, place.into) == []

    back = place.staged(soul, safety, place.into, second, generation=10)
    soul.shut_out()
    soul.switch(back)
    soul.check(safety, 10, second)
    soul.let_in()
    assert soul_data.picture(place.url) == ruined
    assert soul.verify(safety, place.into) == []
    soul.discard(safety)
    soul.discard(safety)
    assert soul.verify(safety, place.into) != []
    assert soul_data.picture(place.url) == ruined


@newest
def test_a_switch_can_be_undone_after_the_displaced_was_named(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    soul_data.ruin(place.url)
    ruined = soul_data.picture(place.url)
    staged = place.staged(soul, facts, folder, ticket := unique("t"))
    soul.switch(staged)
    soul.displaced(staged, facts)
    soul.switch_back(staged)
    soul.let_in()
    assert soul_data.picture(place.url) == ruined
    soul.discard_stage(staged)
    assert _left(place, ticket) == []


@newest
def test_no_switch_without_staged_data(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    before = soul_data.picture(place.url)
    staged = soul.stage(facts, folder, unique("t"))
    soul.discard_stage(staged)
    with pytest.raises(Refused):
        soul.switch(staged)
    assert soul_data.picture(place.url) == before


@newest
def test_check_refuses_data_that_are_not_the_restored_ones(place: Place) -> None:
    soul = place.soul()
    facts, _ = place.captured(soul)
    with pytest.raises(Refused, match="generation 1") as caught:
        soul.check(facts, 2, "t")
    assert caught.value.code == "soul-differs"


@newest
def test_staged_data_lacking_a_sequence_are_damage(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    with connect(place.url) as connection:
        rows(connection, "CREATE SEQUENCE app.too_late")
    later, _ = place.captured(soul)
    staged = soul.stage(facts, folder, unique("t"))
    with pytest.raises(Damage, match="too_late"):
        soul.animate(staged, facts=later, generation=2, signature="", repos={}, journal="t")
    soul.discard_stage(staged)


@newest
def test_commits_that_did_not_wait_for_the_disk_are_kept(place: Place) -> None:
    soul = place.soul()
    with soul.capturing(name := unique("c"), folder := place.into / "soul") as capture:
        with connect(place.url) as connection:
            rows(connection, "SET synchronous_commit TO off")
            for n in range(50):
                rows(connection, "INSERT INTO app.empty VALUES (%s)", (n,))
            capture.begin()
            capture.take()
            capture.end()
        facts = capture.finish()
    staged = place.staged(soul, facts, folder, name)
    soul.switch(staged)
    soul.let_in()
    with connect(place.url) as connection:
        assert rows(connection, "SELECT count(*) FROM app.empty") == [(50,)]


@newest
def test_a_failed_capture_leaves_nothing_and_tells_the_first_error(place: Place) -> None:
    soul = place.soul()
    folder = place.into / "soul"
    with pytest.raises(ZeroDivisionError), soul.capturing(name := unique("c"), folder) as capture:
        capture.begin()
        capture.take()
        raise ZeroDivisionError
    with soul.capturing(name, folder) as capture:
        capture.begin()
        capture.take()
    assert list(folder.iterdir()) == []
    assert _left(place, name) == []
    with connect(place.url) as connection:
        rows(connection, "SET lock_timeout TO '5s'")
        with connection.transaction():
            rows(connection, "LOCK TABLE app.account IN ACCESS EXCLUSIVE MODE")


def test_a_server_that_dies_in_a_capture_seals_nothing_and_leaves_nothing(place: Place) -> None:
    soul = place.soul()
    with connect(place.url) as connection:
        sequences = {name for name, in rows(connection, """
            SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences""")}
    for moment in range(3):
        before = soul_data.picture(place.url)
        folder = place.into / str(moment) / "soul"
        with pytest.raises((Away, Refused)), soul.capturing(name := unique("c"), folder) as capture:
            try:
                for number, act in enumerate((capture.begin, capture.take, capture.end)):
                    if number == moment:
                        place.node.kill()
                    act()
                capture.finish()
            finally:
                revive(place.node)
        assert _left(place, name) == []
        after = soul_data.picture(place.url)
        assert {key for key in before if after[key] != before[key]} <= sequences, "a crash may skip values of those"
    facts, folder = place.captured(place.soul())
    assert soul.verify(facts, folder) == []


@newest
def test_a_server_that_dies_before_or_after_the_window_seals_nothing_and_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    soul, mark = place.soul(), claims.claim

    def killed_first(*arguments: Any) -> Any:
        place.node.kill()
        return mark(*arguments)

    for early in (False, True) if place.driver != "dump" else (False,):  # which marks nothing before
        with monkeypatch.context() as patch:
            if early:
                patch.setattr(claims, "claim", killed_first)
            with pytest.raises((Away, Refused)), soul.capturing(name := unique("c"), place.into / name) as capture:
                capture.begin()
                capture.take()
                capture.end()
                place.node.kill()
                capture.finish()
        revive(place.node)
        assert _left(place, name) == []
    facts, folder = place.captured(place.soul())
    assert soul.verify(facts, folder) == []


@newest
def test_a_server_that_dies_in_a_restore_is_restored_all_the_same(place: Place) -> None:
    soul = place.soul()
    frozen = soul_data.picture(place.url)
    facts, folder = place.captured(soul)
    soul_data.ruin(place.url)
    ticket = unique("t")
    staged: Evidence = {}

    def stage() -> None:
        staged.update(soul.stage(facts, folder, ticket))

    def animate() -> None:
        soul.animate(staged, facts=facts, generation=9, signature="", repos=soul_data.REPOS, journal=ticket)

    for act in (stage, animate, lambda: soul.switch(staged)):
        place.node.kill()
        try:
            act()
        except (Away, Refused):
            revive(place.node)
            act()
        if place.node.pid is None:
            revive(place.node)
    soul.let_in()
    assert soul_data.picture(place.url) == frozen


@newest
def test_a_killed_server_that_nobody_reaped_keeps_no_restore_out(place: Place) -> None:
    if place.driver == "dump":
        return  # nothing is ever started
    soul = place.soul()
    facts, folder = place.captured(soul)
    frozen = soul_data.picture(place.url)
    staged = place.staged(soul, facts, folder, unique("t"))
    place.node.stop()
    place.node.start()  # as our child, which nobody else reaps
    pid = place.node.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text())
    soul.switch(staged)
    assert soul_data.picture(place.url) == frozen


@on([cell for cell in NEWEST if cell.driver == "btrfs"])
def test_what_a_killed_private_server_left_goes_with_its_stage(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    staged = soul.stage(facts, folder, unique("t"))
    pgdata = place.node.pgdata.parent / ".lych-pgdata" / str(staged["stage"])
    homes = f"lych-{hashlib.sha256(os.fsencode(pgdata)).hexdigest()[:12]}-*"

    def die_inside() -> None:
        with soul.opened(staged):
            os.kill(os.getpid(), signal.SIGKILL)

    _killed_after(60, die_inside)
    assert len(list(Path("/tmp").glob(homes))) == 1
    soul.discard_stage(staged)
    assert list(Path("/tmp").glob(homes)) == []
    assert _left(place, str(staged["stage"])) == []


def test_ddl_right_after_the_capture_loses_nothing(place: Place) -> None:
    soul = place.soul()
    frozen = soul_data.picture(place.url)
    folder = place.into / "soul"
    with soul.capturing(name := unique("c"), folder) as capture:
        capture.begin()
        capture.take()
        capture.end()
        ddl = threading.Thread(target=lambda: (_run(place.url, "TRUNCATE app.account"), soul_data.ruin(place.url)))
        ddl.start()
        facts = capture.finish()
        ddl.join()
    assert soul_data.picture(place.url) != frozen
    staged = place.staged(soul, facts, folder, name)
    soul.shut_out()
    soul.switch(staged)
    soul.let_in()
    assert soul_data.picture(place.url) == frozen


@newest
def test_unlogged_tables_are_refused_or_kept(place: Place) -> None:
    soul = place.soul()
    _run(place.url, "INSERT INTO app.scratch SELECT generate_series(1, 1000)")
    if place.driver != "dump":
        with pytest.raises(Refused, match=r"app\.scratch") as caught:
            soul.preflight()
        assert caught.value.code == "unlogged"
        return
    soul.preflight()
    facts, folder = place.captured(soul)
    staged = place.staged(soul, facts, folder, unique("t"))
    soul.switch(staged)
    soul.let_in()
    with connect(place.url) as connection:
        assert rows(connection, "SELECT count(*) FROM app.scratch") == [(1000,)]


@newest
@pytest.mark.slow
def test_a_kill_at_any_point_of_a_switch_leaves_a_way_on_and_a_way_back(place: Place) -> None:
    soul = place.soul()
    frozen = soul_data.picture(place.url)
    facts, folder = place.captured(soul)
    soul_data.ruin(place.url)
    ruined = soul_data.picture(place.url)
    staged = place.staged(soul, facts, folder, unique("t"))
    began = time.perf_counter()
    soul.switch(staged)
    length_s = time.perf_counter() - began
    soul.switch_back(staged)
    outcomes = set()
    for part in range(6):
        _killed_after(length_s * part / 5, lambda: (soul.shut_out(), soul.switch(staged)))
        fresh = Soul.reopen(Ground(url=place.url, pg_bin=place.node.pg_bin), place.driver, staged)
        if part % 2:
            fresh.switch(staged)
            fresh.let_in()
            assert soul_data.picture(place.url) == frozen
            outcomes.add("new")
        fresh.switch_back(staged)
        fresh.let_in()
        assert soul_data.picture(place.url) == ruined
        outcomes.add("old")
    assert outcomes == {"old", "new"}


@on([cell for cell in NEWEST if cell.driver == "pitr"])
@pytest.mark.parametrize("word", ["stop", "start"])
def test_a_pg_ctl_that_outlives_its_switch_misleads_nobody(place: Place, word: str) -> None:
    """It is about to stop the server, or to start one in a PGDATA that is exchanged meanwhile."""
    soul = place.soul()
    facts, folder = place.captured(soul)
    staged = place.staged(soul, facts, folder, unique("t"))
    for delay_s in (0.0, 0.003, 0.006, 0.009, 0.012, 0.016, 0.02):
        def kill_soon(event: str, arguments: tuple[Any, ...], delay_s: float = delay_s) -> None:
            if event == "subprocess.Popen" and word in arguments[1]:
                threading.Timer(delay_s, os.kill, [os.getpid(), signal.SIGKILL]).start()

        _killed_after(30, lambda hook=kill_soon: (sys.addaudithook(hook), soul.switch(staged)))  # type: ignore[misc]
        fresh = Soul.reopen(Ground(url=place.url, pg_bin=place.node.pg_bin), place.driver, staged)
        fresh.switch_back(staged)
        with connect(place.url) as connection:
            assert rows(connection, "SELECT count(*) > 0 FROM app.account") == [(True,)]
        assert fresh.driver.standing() == []


@newest
def test_the_server_is_stopped_and_started_by_the_users_own_commands(place: Place, tmp_path: Path) -> None:
    if place.driver == "dump":
        assert place.soul().driver.standing() == []  # nothing is ever stopped
        return
    user = ["runuser", "-u", str(place.node.owner), "--"] if os.geteuid() == 0 else []
    pg_ctl = [*user, str(place.node.pg_bin / "pg_ctl"), "-w", "-D", str(place.node.pgdata)]
    traced = place.node.pgdata.parent / "started"
    ground = Ground(
        url=place.url, pg_bin=place.node.pg_bin, control=json.dumps({
            "start": ["sh", "-c", f"touch {traced} && cd / && {shlex.join([*pg_ctl, '-l', '/dev/null', 'start'])}"],
            "stop": ["sh", "-c", f"cd / && {shlex.join([*pg_ctl, '-m', 'fast', 'stop'])}"],
        }))
    soul = Soul.open(ground, place.driver, "refuse")
    facts, folder = place.captured(soul)
    frozen = soul_data.picture(place.url)
    soul_data.ruin(place.url)
    staged = place.staged(soul, facts, folder, unique("t"))
    soul.switch(staged)
    assert traced.exists()
    assert soul.driver.standing() == []
    assert soul_data.picture(place.url) == frozen


@newest
def test_a_server_without_its_lock_file_yet_is_stopped_too(place: Place) -> None:
    if place.driver == "dump":
        return  # nothing is ever stopped
    lock, hidden = place.node.pgdata / "postmaster.pid", place.node.pgdata / "hidden"
    lock.rename(hidden)
    come = threading.Timer(0.5, hidden.rename, [lock])
    come.start()
    try:
        shown = Postmaster(pgdata=place.node.pgdata, owner=place.node.owner, pg_ctl=place.node.pg_bin / "pg_ctl")
        shown.stop()
        assert not shown.users()
    finally:
        come.join()
        lock.unlink(missing_ok=True)
        place.node.stop()
        place.node.start()


@newest
def test_clients_can_connect_again_at_once_after_the_switch(place: Place) -> None:
    soul = place.soul()
    facts, folder = place.captured(soul)
    staged = place.staged(soul, facts, folder, unique("t"))
    with psycopg.connect(place.url) as client:
        client.execute("SELECT 1")
        soul.shut_out()
        soul.switch(staged)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
    with connect(place.url) as connection:
        assert rows(connection, "SELECT count(*) > 0 FROM app.account") == [(True,)]
    soul.let_in()


def _killed_after(delay_s: float, act: Callable[[], object]) -> None:
    """Run ``act`` in a forked child and end it with SIGKILL after ``delay_s``, unless it has ended."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    deadline = time.monotonic() + delay_s
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _run(url: str, statement: str) -> None:
    with connect(url) as connection:
        rows(connection, statement)  # type: ignore[arg-type]


def _left(place: Place, ticket: str) -> list[str]:
    """Return what of a ticket is left outside the vault."""
    with connect(place.node.url()) as connection:
        names = [str(row[0]) for row in rows(connection, "SELECT datname::text FROM pg_database")]
    shelf = place.node.pgdata.parent / ".lych-pgdata"
    names += [path.name for path in shelf.iterdir()] if shelf.is_dir() else []
    return [name for name in names if name.endswith((ticket, f"{ticket}.json"))]
