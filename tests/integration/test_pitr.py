"""What only the pitr driver does: bases that several points share, timelines, WAL that went, and its rights."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from lych_checkpoint.database import connect, rows
from lych_checkpoint.drivers.base import Ground
from lych_checkpoint.errors import Refused
from lych_checkpoint.manifest import SoulFacts
from lych_checkpoint.soul import Soul
from ops.contract import data as soul_data
from ops.servers.postgres import PostgresNode
from tests.fixtures.filesystems import fill_disk
from tests.fixtures.lacking import lacks
from tests.fixtures.workers import Lych
from tests.integration.test_create_and_restore import body_digest, change_everything, fill, soul_digest

_numbers = itertools.count()


@dataclass
class Place:
    """A server, and a soul in it whose whole content is the rows of one table."""

    node: PostgresNode
    url: str
    into: Path

    @property
    def shelf(self) -> Path:
        return self.node.pgdata.parent / ".lych-pgdata"

    def soul(self) -> Soul:
        return Soul.open(self.ground(), "pitr", "refuse")

    def ground(self) -> Ground:
        return Ground(url=self.url, pgdata=self.node.pgdata, pg_bin=self.node.pg_bin)

    def say(self, word: str) -> None:
        with connect(self.url) as connection:
            rows(connection, "INSERT INTO app.said VALUES (%s)", (word,))

    def said(self) -> str:
        with connect(self.url) as connection:
            return str(rows(connection, "SELECT coalesce(string_agg(word, ' ' ORDER BY n), '') FROM app.said")[0][0])

    def captured(self) -> SoulFacts:
        with self.soul().capturing(f"c{next(_numbers)}", self.into) as capture:
            capture.begin()
            capture.take()
            capture.end()
            return capture.finish()

    def restored(self, facts: SoulFacts) -> SoulFacts:
        """Restore, and return the facts of what was displaced."""
        soul = self.soul()
        staged = soul.stage(facts, self.into, ticket := f"t{next(_numbers)}")
        soul.animate(staged, facts=facts, generation=9, signature="", repos=soul_data.REPOS, journal=ticket)
        soul.switch(staged)
        return soul.displaced(staged, facts)

    def bases(self) -> set[str]:
        return {path.name for path in self.shelf.glob("base-*") if path.is_dir()}

    def slots(self) -> int:
        with connect(self.url) as connection:
            return int(rows(connection, "SELECT count(*) FROM pg_replication_slots WHERE NOT temporary")[0][0])

    def timeline(self) -> int:
        with connect(self.url) as connection:
            return int(rows(connection, "SELECT timeline_id FROM pg_control_checkpoint()")[0][0])


@pytest.fixture(scope="module")
def node(ext4: Path) -> Iterator[PostgresNode]:
    with PostgresNode.start_new(ext4 / "server") as made:
        yield made


@pytest.fixture
def place(node: PostgresNode, tmp_path: Path) -> Iterator[Place]:
    name = f"pitr{next(_numbers)}"
    node.run("psql", "-qc", f"create database {name}", "postgres")
    soul_data.make(node.url(name))
    place = Place(node, node.url(name), tmp_path)
    with connect(place.url) as connection:
        rows(connection, "CREATE TABLE app.said (word text, n serial)")
    yield place
    if place.shelf.is_dir():
        shutil.rmtree(place.shelf)


def test_points_share_a_base_as_long_as_one_of_them_is_kept(place: Place) -> None:
    place.say("one")
    first = place.captured()
    place.say("two")
    second = place.captured()
    assert len(place.bases()) == 1
    place.say("three")
    soul = place.soul()
    soul.discard(first)
    assert soul.verify(second, place.into, deep=True) == []
    assert "gone" in soul.verify(first, place.into)[0]
    place.restored(second)
    assert place.said() == "one two"
    soul.discard(second)
    assert place.bases() == set()
    third = place.captured()
    assert place.slots() == 1
    soul.discard(third)
    assert (place.bases(), place.slots()) == (set(), 0), "nobody needs the WAL any more"


def test_each_point_comes_back_on_its_own_timeline_however_often_others_did(place: Place) -> None:
    began = place.timeline()
    place.say("a")
    a = place.captured()
    place.say("b")
    ab = place.captured()
    place.say("lost")
    displaced = place.restored(a)
    seen = [began, place.timeline()]
    place.say("c")
    ac = place.captured()
    for facts, said in ((ab, "a b"), (ac, "a c"), (a, "a"), (ac, "a c"), (displaced, "a b lost")):
        place.restored(facts)
        assert place.said() == said
        seen.append(place.timeline())
    assert seen == [*range(began, began + 6), began], "what follows a restore bears a name of its own"

    place.say("d")
    d = place.captured()  # the server came from a copy: it has the slot of the first base, and other WAL since
    place.say("e")
    again = place.restored(displaced)
    assert place.said() == "a b lost"
    place.say("f")
    f = place.captured()
    for facts, said in ((d, "a b lost d"), (f, "a b lost f"), (again, "a b lost d e"), (ab, "a b")):
        place.restored(facts)
        assert place.said() == said
        assert place.soul().verify(facts, place.into) == []


def test_two_lives_of_one_copy_share_no_wal(place: Place) -> None:
    place.say("a")
    a = place.captured()
    copy = place.restored(a)  # it holds the slot of the base that is noted
    points = []
    for word in ("b", "c"):
        place.restored(copy)
        with connect(place.url) as connection:
            place.say(word)
            rows(connection, "SELECT pg_switch_wal()")
        points.append((place.captured(), f"a {word}"))
    for facts, said in points:
        place.restored(facts)
        assert place.said() == said


def test_a_failed_create_keeps_the_base_for_the_next(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.soul().capturing("failed", place.into) as capture:
        capture.begin()
        capture.take()
        raise ZeroDivisionError
    made = place.bases()
    assert len(made) == 1
    facts = place.captured()
    assert place.bases() == made
    assert [path.name for path in place.shelf.glob("failed*")] == []
    assert place.soul().verify(facts, place.into, deep=True) == []


def test_another_federation_sweeps_no_base_that_has_no_point_yet(place: Place) -> None:
    theirs = place.captured()
    (place.shelf / "base.json").unlink()  # so that the next one lays a base of its own
    place.say("ours")
    with place.soul().capturing("ours", place.into) as capture:
        sweep = threading.Thread(target=lambda: place.soul().discard(theirs))
        sweep.start()
        sweep.join(1)
        capture.begin()
        capture.take()
        capture.end()
        facts = capture.finish()
    sweep.join()
    assert place.soul().verify(facts, place.into, deep=True) == []
    assert len(place.bases()) == 1


def test_wal_that_the_server_dropped_makes_a_new_base(place: Place) -> None:
    place.say("before")
    first = place.captured()
    made = place.bases()
    with connect(place.url) as connection:
        rows(connection, "ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
        try:
            rows(connection, "SELECT pg_reload_conf()")
            for _ in range(4):
                rows(connection, "SELECT pg_switch_wal()")
                rows(connection, "SELECT pg_logical_emit_message(true, 'x', 'x')")
            rows(connection, "CHECKPOINT")
            assert rows(connection, "SELECT wal_status FROM pg_replication_slots") == [("lost",)]
        finally:
            rows(connection, "ALTER SYSTEM RESET max_slot_wal_keep_size")
            rows(connection, "SELECT pg_reload_conf()")
    place.say("after")
    second = place.captured()
    assert made < place.bases()
    for facts, said in ((first, "before"), (second, "before after")):
        place.restored(facts)
        assert place.said() == said


def test_wal_that_goes_in_a_capture_seals_nothing(place: Place) -> None:
    place.captured()
    before = set(place.shelf.iterdir())
    with pytest.raises(Refused), place.soul().capturing("torn", place.into) as capture:
        capture.begin()
        capture.take()
        capture.end()
        with connect(place.url) as connection:
            rows(connection, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        capture.finish()
    assert set(place.shelf.iterdir()) == before
    assert place.soul().verify(place.captured(), place.into) == []


def test_each_changed_or_missing_part_is_damage_and_no_part_of_the_next(place: Place) -> None:
    soul = place.soul()
    for part in ("base-{base}/base/1/1255", "wal-{base}/0*", "{point}/0*", "base-{base}/backup_label",
                 "{point}/point.json"):
        place.captured()
        with connect(place.url) as connection:
            rows(connection, "SELECT pg_switch_wal()")
        facts = place.captured()
        assert soul.verify(facts, place.into) == []
        point = str(facts.evidence["snapshot"])
        base = json.loads((place.shelf / point / "point.json").read_text())["base"]
        file = min(place.shelf.glob(part.format(point=point, base=base)))
        kept = file.read_bytes()
        file.write_bytes(kept)
        assert "changed" in soul.verify(facts, place.into)[0]
        file.unlink()
        assert soul.verify(facts, place.into) != []
        place.say(part)
        after = place.captured()
        assert soul.verify(after, place.into) == []
    place.restored(after)
    assert place.said().endswith(part)


def test_a_point_that_is_not_in_its_wal_is_damage_when_looked_for(place: Place) -> None:
    facts = place.captured()
    other = replace(facts, evidence={**facts.evidence, "target": "lych-nowhere"})
    damages = place.soul().verify(other, place.into, deep=True)
    assert "recovery ended before configured recovery target was reached" in damages[0]


def test_a_full_disk_is_refused_before_the_server_meets_it(place: Place, ext4: Path) -> None:
    facts = place.captured()
    soul = place.soul()
    filler = ext4 / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ext4).free - (270 << 20))
    try:
        with pytest.raises(Refused, match="MB are free") as caught:
            soul.stage(facts, place.into, "full")
    finally:
        filler.unlink()
    assert caught.value.code == "no-room"
    assert list(place.shelf.glob("stage-*")) == []


def test_a_disk_that_fills_in_a_capture_seals_nothing_and_the_next_one_does(place: Place, ext4: Path) -> None:
    place.captured()
    before = {path.name for path in place.shelf.iterdir()}
    filler = ext4 / "filler"
    try:
        with pytest.raises(Refused, match="no room left") as caught, \
                place.soul().capturing("full", place.into) as capture:
            capture.begin()
            capture.take()
            capture.end()
            fill_disk(filler, leave_bytes=4 << 20)
            capture.finish()
    finally:
        filler.unlink()
    assert (caught.value.code, caught.value.where) == ("no-room", str(place.shelf))
    assert {path.name for path in place.shelf.iterdir()} == before
    place.say("after")
    facts = place.captured()
    assert place.soul().verify(facts, place.into, deep=True) == []


def test_each_missing_right_is_said_with_the_command_that_gives_it(place: Place) -> None:
    with connect(place.url) as connection:
        rows(connection, "CREATE ROLE keeper LOGIN PASSWORD 'x'; GRANT pg_checkpoint TO keeper")
    keeper = replace(place.ground(), url=make_conninfo(place.url, user="keeper", password="x"))
    with connect(place.url) as connection:
        rows(connection, "GRANT CONNECT ON DATABASE " + str(connection.info.dbname) + " TO keeper")
        for _ in range(3):
            reason = dict(Soul.reports(keeper))["pitr"]
            assert reason is not None
            command = reason.mend
            assert command.startswith(("GRANT", "ALTER ROLE keeper REPLICATION"))
            rows(connection, command)  # type: ignore[arg-type]
    assert dict(Soul.reports(keeper))["pitr"] is None


@pytest.mark.parametrize("version", ["", "15"])
def test_the_verbs_bring_back_the_pair_and_undo_it(
    version: str, ext4: Path, lych: Lych, lych_environment: dict[str, str], federation_root: Path
) -> None:
    pg_bin = Path(f"/usr/lib/postgresql/{version}/bin") if version else None
    if pg_bin is not None and not pg_bin.exists():
        lacks(f"needs PostgreSQL {version} in {pg_bin}")
    with PostgresNode.start_new(ext4 / f"verbs{version}", pg_bin=pg_bin) as server:
        server.run("createdb", "soul")
        url = server.url("soul")
        lych_environment |= {"LYCH_DATABASE_URL": url, "LYCH_DRIVER": "pitr", "LYCH_PG_BIN": str(server.pg_bin)}
        fill(url)
        assert lych("init").code == 0
        first = _both(federation_root, url)
        for verb in (("create", "--here", "--label", "first"), ("verify", "first", "--deep")):
            assert lych(*verb).code == 0
        change_everything(federation_root, url)
        changed = _both(federation_root, url)
        assert lych("restore", "first", "--yes").code == 0
        assert _both(federation_root, url) == first
        done = lych("create", "--here", "--label", "again", "--json")
        assert (done.code, done.json["driver"]) == (0, "pitr"), done.out
        assert lych("restore", "--undo", "--yes").code == 0
        assert _both(federation_root, url) == changed
        for name in ("again", "first"):
            assert lych("restore", name, "--yes").code == 0
            assert _both(federation_root, url) == first
        assert lych("verify", "again").code == 0
        assert lych("gate").code == 0


def _both(root: Path, url: str) -> tuple[object, object]:
    return body_digest(root), soul_digest(url)
