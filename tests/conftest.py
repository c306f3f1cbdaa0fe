"""Every fixture lives in a room of its own under tests/fixtures."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

#: Many tests run at once: how long an example takes says nothing.
settings.register_profile("crowd", deadline=None)
settings.load_profile("crowd")

pytest_plugins = [
    "tests.fixtures.places",
    "tests.fixtures.postgres",
    "tests.fixtures.redis",
    "tests.fixtures.rabbitmq",
    "tests.fixtures.federation",
    "tests.fixtures.filesystems",
    "tests.fixtures.ready",
    "tests.fixtures.workers",
    "tests.fixtures.vaults",
    "tests.fixtures.client",
    "tests.fixtures.opened",
    "tests.fixtures.stamps",
    "tests.fixtures.durable",
    "tests.fixtures.hosts",
    "tests.fixtures.souls",
]

#: The files that take minutes, the longest first: one that began last would keep a whole run waiting for itself.
_LONG = (
    "test_kills", "test_driver_contract", "test_body_property", "test_body_killed", "test_faults", "test_protocol",
)


def pytest_configure() -> None:
    """Let the tests' programs be interrupted: what a shell runs in the background ignores SIGINT, children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have long files begin first."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))
