"""Several hosts, each with its own checkout: a restore asks them, they follow it, and who slept is caught at boot."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lych_checkpoint import coordinator, gate
from lych_checkpoint.federation import Federation
from ops.servers.celery import CeleryProcess
from tests.fixtures.client import publish, wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.hosts import MakeHost, OtherHost
from tests.fixtures.opened import wait_for_workers
from tests.fixtures.workers import Lych, Workers

Opened = Callable[..., Federation]


@pytest.fixture
def start(workers: Workers) -> Iterator[Callable[..., CeleryProcess]]:
    """Start a worker on a host."""
    running: list[CeleryProcess] = []

    def started(host: OtherHost, *, wait: bool = True, **environment: str) -> CeleryProcess:
        running.append(workers.start(host.name, pool="solo", wait=False, within=host.within,
                                     environment={"LYCH_QUEUE_POLICY": "keep", **host.environment, **environment}))
        return running[-1].wait_ready(60) if wait else running[-1]

    yield started
    for worker in running:
        if worker.exit_code is None:
            worker.send(signal.SIGKILL)  # the namespace's first process passes no SIGTERM on


@pytest.fixture
def two_versions(opened: Opened, federation_root: Path) -> tuple[Federation, str, str]:
    """A checkpoint of the first version, and the second one live; its id and the commit that it holds."""
    federation = opened(LYCH_GONE_AFTER_S="2", LYCH_ACK_TIMEOUT_S="4")
    gate.check(federation)
    first = git(federation_root / "core", "rev-parse", "HEAD")
    made = coordinator.create(federation, coordinator.Request())["id"]
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 2\n"})
    shutil.copytree(federation_root / "extensions/alpha", federation_root / "extensions/gamma")
    gate.check(federation)
    return federation, made, first


def heads(root: Path) -> dict[str, str]:
    """Return the commit of each repository below ``root``."""
    return {path.parent.relative_to(root).as_posix(): git(path.parent, "rev-parse", "HEAD")
            for path in (*root.glob("core/.git"), *root.glob("extensions/*/.git"))}


def test_a_restore_reaches_every_host_and_those_that_slept_are_caught(
    two_versions: tuple[Federation, str, str], other_host: MakeHost, workers: Workers, lych: Lych,
    start: Callable[..., CeleryProcess], federation_root: Path, redis_url: str,
) -> None:
    federation, made, first = two_versions
    rolling = other_host("rolling")  # a third version comes, and never gets there
    commit(federation_root / "core", {"core/__init__.py": "VERSION = 3\n"})
    gate.check(federation)
    here, away, blind = other_host("here"), other_host("away"), other_host("blind")
    worker = start(here)
    wait_for_workers(federation, 1)
    publish(redis_url, 4)
    wait_until(lambda: len(workers.ends()) == 4)
    restored = lych("restore", made, "--yes", "--json")
    assert restored.code == 0, restored.out + restored.err
    assert worker.wait_exit() == 75
    publish(redis_url, 4, first=4)
    aligned = heads(federation_root)
    assert (aligned["core"], "extensions/gamma" in aligned) == (first, False)
    for host in (here, away, rolling):
        assert heads(host.root) != aligned
        start(host)  # its gate checks the body out, and the worker starts again in place
        assert heads(host.root) == aligned
    assert start(blind, wait=False, LYCH_VAULT=str(blind.root / "nowhere")).wait_exit() == 75
    wait_until(lambda: len(workers.ends()) == 8)
    witness = lych("gate", "--json").json
    assert (witness["verdict"], witness["generation"]) == ("aligned", restored.json["generation"])
    # From here on its commits are its own: the very body that was displaced may be deployed anew, as an upgrade.
    for host in (rolling, away):
        git(host.root / "core", "checkout", "-q", "main")
        assert lych("gate", "--json", **host.environment).json["verdict"] == "ahead"


def test_uncommitted_work_on_a_host_that_slept_is_not_replaced(
    two_versions: tuple[Federation, str, str], other_host: MakeHost, lych: Lych,
    start: Callable[..., CeleryProcess],
) -> None:
    _, made, _ = two_versions
    away = other_host("away")
    assert lych("restore", made, "--yes").code == 0
    (away.root / "core" / "mine").write_text("work\n")
    worker = start(away, wait=False)
    assert worker.wait_exit() == 78
    assert "nothing is checked out over it" in worker.text
    assert (away.root / "core" / "mine").read_text() == "work\n"
    told = lych("gate", "--json", **away.environment)
    assert (told.code, told.json["error"]["code"]) == (75, "gate-slept")


def test_a_host_that_cannot_follow_or_does_not_say_stops_the_restore(
    two_versions: tuple[Federation, str, str], other_host: MakeHost, lych: Lych,
    start: Callable[..., CeleryProcess], federation_root: Path, tmp_path: Path,
) -> None:
    federation, made, first = two_versions
    poor = other_host("poor")
    shutil.rmtree(poor.root / "core")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{federation_root}/core", str(poor.root / "core"))
    seen = tmp_path / "mounted vault"
    seen.symlink_to(federation.vault.root)
    worker = start(poor, LYCH_VAULT=str(seen))
    wait_for_workers(federation, 1)
    seen.unlink()
    before = heads(federation_root)
    refused = lych("restore", made, "--yes", "--json", LYCH_ACK_TIMEOUT_S="4")
    assert (refused.code, refused.json["error"]["code"], refused.json["error"]["where"]) == (1, "host-lacks", "poor")
    assert first[:12] in refused.json["error"]["what"]
    seen.symlink_to(federation.vault.root)
    poor.cut()
    silent = lych("restore", made, "--yes", "--json", LYCH_ACK_TIMEOUT_S="2")
    assert (silent.code, silent.json["error"]["where"]) == (4, "poor")
    assert heads(federation_root) == before
    assert lych("status", "--json").json["restore"] is None
    # Silent for long enough it is proven gone; it sees the restore when it comes back, before it starts anything.
    wait_until(lambda: lych("restore", made, "--yes", LYCH_GONE_AFTER_S="3").code == 0)
    poor.join()
    assert worker.wait_exit(60) == 75
    start(poor, LYCH_VAULT=str(seen))
    assert heads(poor.root) == heads(federation_root)
