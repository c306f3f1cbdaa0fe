"""Writers outside Celery as they are: a web process that never stops, a beat with its schedule in the soul."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from lych_checkpoint import restore
from lych_checkpoint.federation import Federation
from ops.servers.postgres import PostgresNode
from tests.fixtures import shop
from tests.fixtures.client import wait_until
from tests.fixtures.places import open_directory
from tests.fixtures.shop import Shop
from tests.fixtures.workers import Lych, Workers

Open = Callable[..., Federation]
both = pytest.mark.parametrize("driver", ["dump", "pitr"])


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresNode]:
    """A server whose cluster may be copied. Autovacuum moves the snapshot, and is another test's."""
    with open_directory() as directory, PostgresNode.start_new(directory, options={"autovacuum": "off"}) as node:
        yield node


@pytest.fixture
def environment(postgres: PostgresNode) -> dict[str, str]:
    return {"LYCH_PGDATA": str(postgres.pgdata)}


@both
def test_who_writes_is_refused_by_pid_user_and_application_or_named_so_in_the_manifest(
    driver: str, lych: Lych, opened: Open, database: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    federation = opened()
    with Shop(database, tmp_path) as web:
        named = f"pid {web.session}, user lych, application '{shop.NAME}'"
        refused = lych("create", "--here", "--json", LYCH_DRIVER=driver, **environment)
        assert federation.vault.ids() == []
        created = lych("create", "--here", "--json", LYCH_DRIVER=driver, LYCH_WRITERS="note", **environment)
        web.sells()
    assert refused.code == 1, refused.out
    error = refused.json["error"]
    assert error["code"] == "writers"
    assert named in error["what"]
    assert "LYCH_WRITERS to fence or note" in error["mend"]
    assert created.code == 0, created.out
    told = federation.vault.manifest(created.json["id"]).soul.writers
    assert any(named in line for line in told), told


@both
def test_behind_the_fence_writers_wait_and_nothing_is_lost_or_half(
    driver: str, lych: Lych, opened: Open, workers: Workers, database: str, tmp_path: Path,
    environment: dict[str, str],
) -> None:
    federation = opened(LYCH_DRIVER=driver, **environment)
    beat = workers.beat("tests.fixtures.apps.beating")
    with Shop(database, tmp_path) as web:
        wait_until(lambda: runs(database) > 0)
        before, beaten = web.committed, runs(database)
        created = lych("create", "--here", "--json", LYCH_DRIVER=driver, LYCH_WRITERS="fence", **environment)
        assert created.code == 0, created.out
        web.sells()
        beats = runs(database)
        wait_until(lambda: runs(database) > beats)
    beat.close()
    sold = web.committed
    # One more may have been committed before the kill, and not noted.
    assert sold <= shop.orders(database) <= sold + 1
    restore.restore(federation, created.json["id"])
    assert before <= shop.orders(database) < sold
    assert runs(database) >= beaten


def runs(database: str) -> int:
    """Return how often the beat has run."""
    with psycopg.connect(database) as connection:
        if connection.execute("SELECT to_regclass('beat_run')").fetchone() == (None,):
            return 0
        found = connection.execute("SELECT runs FROM beat_run").fetchone()
    return int(found[0]) if found else 0
