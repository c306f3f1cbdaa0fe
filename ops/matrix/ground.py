"""What the cells share: database, body, RabbitMQ; and what each has of its own: Redis, workers, queues."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from celery import Celery

from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone
from lych_checkpoint.settings import Settings
from lych_checkpoint.setup import init
from ops.matrix.cells import CONCURRENCY, Cell
from ops.servers.celery import CeleryProcess
from ops.servers.postgres import PostgresNode
from ops.servers.rabbitmq import RabbitNode
from ops.servers.redis import RedisNode

_CHECKOUT = Path(__file__).parents[2]


class Ground:
    """The servers that run through all cells. Made by `raised`."""

    def __init__(self, home: Path, postgres: PostgresNode, rabbit: RabbitNode | None) -> None:
        self.home, self._rabbit = home, rabbit
        core = home / "federation" / "core"
        core.mkdir(parents=True)
        (core / "README").write_text("the core\n")
        who = {f"GIT_{role}_{what}": "matrix@example.org" for role in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")}
        for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
            subprocess.run(["git", "-C", core, *arguments], check=True, env={**os.environ, **who})
        postgres.run("createdb", "soul")
        self._settings = {
            "lych_federation": "matrix", "lych_database_url": postgres.url("soul"), "lych_root": str(core.parent),
            "lych_vault": str(home / "vault"), "lych_drain_timeout_s": 20, "lych_ack_timeout_s": 10,
        }
        init(Federation(Settings.load(self._settings)))

    @contextmanager
    def stage(self, cell: Cell) -> Iterator[Stage]:
        """Start the cell's Redis and its two workers; all ends with the block."""
        home = self.home / cell.name
        home.mkdir()
        with RedisNode.start_new(home, persistence="none") as redis, ExitStack() as stack:
            if cell.broker == "redis":
                url = redis.url
            else:
                assert self._rabbit is not None
                url = self._rabbit.url
            settings = {**self._settings, "lych_redis_url": redis.url}
            federation = Federation(Settings.load(settings))
            stage = Stage(cell, federation, Celery("matrix", set_as_current=False), home / "records")
            stage.app.conf.update(cell.configuration(url))
            environment = {
                **{name.upper(): str(value) for name, value in settings.items()},
                "PYTHONPATH": str(_CHECKOUT), "LYCH_TEST_BROKER_URL": url, "LYCH_TEST_CELL": str(cell),
                "LYCH_TEST_RECORDS": str(stage.records),
            }
            workers = [
                stack.enter_context(CeleryProcess.worker(
                    "ops.matrix.app", name, directory=home, environment=environment, pool=cell.pool,
                    concurrency=CONCURRENCY[cell.pool], options=("-Q", queue),
                ))
                for name, queue in zip(("one", "two"), cell.queues * 2, strict=False)
            ]
            for worker in workers:
                worker.wait_ready(60)
            gone.settle(federation.store())  # else the freeze would wait for it while the first tasks run
            yield stage
            for worker in workers:
                worker.ask_to_stop()


class Stage:
    """One cell at work."""

    def __init__(self, cell: Cell, federation: Federation, app: Celery, records: Path) -> None:
        self.cell, self.federation, self.app, self.records = cell, federation, app, records

    def publish(self, tags: range, *, seconds: float = 0.0, due_s: tuple[float, float] | None = None) -> None:
        """Publish tasks, in turns to each queue; with ``due_s`` their ETAs lie between those seconds from now."""
        began_s = time.monotonic()
        least_s = 1.0 if self.cell.is_quorum else 0.05  # Celery refuses to have RabbitMQ delay by less than a second
        with self.app.connection_for_write() as connection, connection.Producer() as producer:
            for number, tag in enumerate(tags):
                countdown = None
                if due_s is not None:
                    spread = (due_s[1] - due_s[0]) * number / len(tags)
                    countdown = max(least_s, due_s[0] + spread - (time.monotonic() - began_s))
                self.app.send_task(
                    "work", args=[tag, seconds], producer=producer, countdown=countdown,
                    queue=self.cell.queues[number % len(self.cell.queues)],
                )

    def runs(self) -> list[tuple[int, float, float]]:
        """Return every run so far: tag, began, ended; in the order in which they ended."""
        if not self.records.exists():
            return []
        split = [line.split() for line in self.records.read_text().splitlines()]
        return [(int(tag), float(began), float(ended)) for tag, began, ended in split]


@contextmanager
def raised(*, rabbit: bool) -> Iterator[Ground]:
    """Start the shared servers in a temporary directory; it stays where the body of the `with` fails."""
    home = Path(tempfile.mkdtemp(prefix="lych-matrix-"))
    home.chmod(0o711)
    with ExitStack() as stack:
        (home / "server").mkdir(mode=0o711)
        postgres = stack.enter_context(PostgresNode.start_new(home / "server"))
        node = stack.enter_context(RabbitNode.start_new(home)) if rabbit else None
        yield Ground(home, postgres, node)
    shutil.rmtree(home)
