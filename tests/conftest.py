"""Every fixture lives in a room of its own under tests/fixtures."""

pytest_plugins = [
    "tests.fixtures.places",
    "tests.fixtures.postgres",
    "tests.fixtures.redis",
    "tests.fixtures.rabbitmq",
    "tests.fixtures.federation",
    "tests.fixtures.filesystems",
    "tests.fixtures.workers",
    "tests.fixtures.vaults",
    "tests.fixtures.client",
    "tests.fixtures.opened",
    "tests.fixtures.stamps",
    "tests.fixtures.durable",
    "tests.fixtures.hosts",
    "tests.fixtures.souls",
]
