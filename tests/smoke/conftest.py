"""pytest-celery's fixtures for these tests alone: its plugin is off, for it would rule every test of the project."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
from celery import Celery
from pytest_celery.api.backend import CeleryBackendCluster, CeleryTestBackend
from pytest_celery.api.broker import CeleryBrokerCluster, CeleryTestBroker
from pytest_celery.api.setup import CeleryTestSetup
from pytest_celery.api.worker import CeleryTestWorker, CeleryWorkerCluster

from ops.servers.binaries import redis_server
from ops.servers.child import free_port
from tests.fixtures.lacking import lacks
from tests.smoke.containers import Ground

_SOCKET = "/var/run/docker.sock"
_APP = "tests.fixtures.apps.recording"


class Worker(CeleryTestWorker):
    """A worker whose name is the node name that it was started with."""

    @property
    def worker_name(self) -> str:
        return self.name()

    @property
    def worker_queue(self) -> str:
        return "celery"

    def hostname(self) -> str:
        return f"{self.name()}@local"


@pytest.fixture(params=["process", "container"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Where nodes run: local processes, and containers where Docker runs."""
    directory = tmp_path / "nodes"
    directory.mkdir()
    with Ground(directory, _docker(request) if request.param == "container" else None) as made:
        yield made


def _docker(request: pytest.FixtureRequest) -> Any:
    """Return a client, or skip; fail where LYCH_TEST_DOCKER=required."""
    try:
        # Asked first: Docker's client leaks its socket, which is an error here, where nobody answers.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(_SOCKET)
        client = docker.DockerClient(f"unix://{_SOCKET}")
        client.ping()
    except (OSError, docker.errors.DockerException) as error:
        if os.environ.get("LYCH_TEST_DOCKER") == "required":
            pytest.fail(f"LYCH_TEST_DOCKER=required, and Docker does not answer: {error}", pytrace=False)
        pytest.skip("Docker does not answer here; LYCH_TEST_DOCKER=required makes this a failure")
    if not Path("/usr/bin/git").exists():
        lacks("the containers see the host's /usr, which has no git")
    request.addfinalizer(client.close)
    return client


@pytest.fixture
def celery_broker_cluster(ground: Ground, tmp_path: Path) -> CeleryBrokerCluster:
    """One Redis: broker, results, records and leases, with a log of all writes."""
    port, data = free_port(), tmp_path / "nodes" / "redis"
    data.mkdir()
    url = f"redis://127.0.0.1:{port}/0"
    container = ground.run(
        "redis", [str(redis_server()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data),
                  "--appendonly", "yes", "--save", ""],
        environment={}, ready_prompt="Ready to accept connections", celeryconfig={"url": url, "host_url": url},
    )
    cluster = CeleryBrokerCluster(CeleryTestBroker(container))
    assert cluster.ready()
    return cluster


@pytest.fixture
def celery_backend_cluster(celery_broker_cluster: CeleryBrokerCluster) -> CeleryBackendCluster:
    """The same Redis."""
    return CeleryBackendCluster(CeleryTestBackend(celery_broker_cluster[0].container))


@pytest.fixture
def redis_url(celery_broker_cluster: CeleryBrokerCluster) -> str:
    """The node's URL, for all fixtures that stand on it."""
    return str(celery_broker_cluster[0].config()["url"])


@pytest.fixture
def lych_environment(lych_environment: dict[str, str]) -> dict[str, str]:
    """The usual settings; a dead worker of another host counts as gone after three seconds."""
    return {**lych_environment, "LYCH_GONE_AFTER_S": "3"}


@pytest.fixture
def celery_worker_cluster(
    ground: Ground, lych_environment: Mapping[str, str], opened: Callable[..., Any]
) -> CeleryWorkerCluster:
    """Two workers of one federation."""
    nodes = [
        Worker(ground.run(
            name, [sys.executable, "-m", "celery", "-A", _APP, "worker", "-n", f"{name}@local", "-c", "2",
                   "-l", "INFO", "--without-gossip", "--without-mingle"],
            environment=lych_environment, ready_prompt=f"{name}@local ready.",
        ), Celery(set_as_current=False))
        for name in ("one", "two")
    ]
    cluster = CeleryWorkerCluster(*nodes)
    assert cluster.ready()
    return cluster


@pytest.fixture
def celery_setup(
    celery_worker_cluster: CeleryWorkerCluster, celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster, client: Celery,
) -> CeleryTestSetup:
    """Everything, ready."""
    setup = CeleryTestSetup(
        worker_cluster=celery_worker_cluster, broker_cluster=celery_broker_cluster,
        backend_cluster=celery_backend_cluster, app=client,
    )
    assert setup.ready(ping=False, control=True, docker=False)
    return setup
