"""Tasks that change the system itself: a sealed checkpoint first, the new body imprinted after."""

from __future__ import annotations

import time
from typing import Any

from celery import Task, current_task

from lych_checkpoint import body, coordinator, witness
from lych_checkpoint.database import connect, underlying
from lych_checkpoint.database.server import identity
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import requests
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.settings import Settings
from lych_checkpoint.worker.flag import FROZEN

#: How often a parked task looks whether it may go on.
_PARKED_POLL_S = 0.02


class EvolutionTask(Task):  # type: ignore[type-arg]
    """Base of tasks that rewrite code or schema.

    A sealed checkpoint whose freeze began after the task was taken up precedes its body; its id is
    ``self.checkpoint``. If that checkpoint fails, so does the task, before its body. After the body, the commits on
    disk are imprinted into the witness. Tasks that wait together share a checkpoint. Acked late: a worker that dies
    during the checkpoint loses no task.

    A body must not wait for another EvolutionTask's result: that one waits for this body to end.
    """

    abstract = True
    acks_late = True

    @property
    def checkpoint(self) -> str:
        """The id of the checkpoint that precedes this run; empty when called directly."""
        return str(getattr(self.request, "lych_checkpoint", "") or "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Checkpoint, run the body, imprint. A direct call, without a worker, only runs the body."""
        if self.request.called_directly or self.request.is_eager:
            return super().__call__(*args, **kwargs)
        plugin = getattr(self.app, "lych", None)
        if plugin is None:
            raise Refused("EvolutionTask needs lych_checkpoint.install(app)", self.name, "call install(app)")
        federation: Federation = plugin.federation()
        document = coordinator.create(
            federation,
            coordinator.Request(reason=f"before {self.name}", task_id=str(self.request.id), task=self.name,
                                boot=plugin.boot),
            self.app,
        )
        self.request.lych_checkpoint = document["id"]  # type: ignore[attr-defined]  # a Context takes any attribute
        # `run`, as Celery's documentation has it: the base's `__call__` would push a second, empty request.
        try:
            result = self.run(*args, **kwargs)
        except BaseException as error:
            # Commits that a broken body left are what the next boot will find, so the witness names them too.
            try:
                _imprint_now(federation)
            except CheckpointError as second:
                error.add_note(f"the body it leaves behind could not be imprinted: {second}")
            raise
        _imprint_now(federation)
        return result


def imprint(connection: Any) -> None:
    """Write the body on disk into the witness, inside the caller's own transaction.

    For migrations: schema and witness then change together or not at all. The vault's lineage learns of it when the
    EvolutionTask around it ends, or at the next gate: before the commit nobody knows whether it happened.

    Args:
        connection: a psycopg connection, or an SQLAlchemy or Django one that wraps it.

    Raises:
        Refused: there is no witness (code ``no-witness``), or no psycopg connection inside.
    """
    plugin = getattr(current_task.app, "lych", None) if current_task else None
    settings = plugin.settings if plugin is not None else Settings.load()
    witness.imprint(underlying(connection), *body.pins(Federation(settings).members()))


def _imprint_now(federation: Federation) -> None:
    with connect(federation.settings.need("database_url")) as connection:
        known = witness.imprint(connection, *body.pins(federation.members()))
        soul = identity(connection)
    federation.vault.append_lineage("imprint", known.generation, known.signature, soul=soul)


def safepoint() -> None:
    """Let a freeze pass here. In the body of a long task: returns at once while nothing is frozen, else parks.

    A parked task counts as drained: call this only where the task holds no transaction open and no file half written.
    Where Redis is away a parked task goes on when its worker does. Outside a worker it does nothing.
    """
    if not FROZEN.byte[0]:
        return
    task = current_task
    plugin = getattr(task.app, "lych", None) if task else None
    if plugin is None:
        return
    store = plugin.federation().store()
    try:
        while _is_parked(store, str(task.request.id), plugin, task.name):
            time.sleep(_PARKED_POLL_S)
    finally:
        store.close()


def _is_parked(store: Store, task_id: str, plugin: Any, task: str) -> bool:
    try:
        return requests.park_while_frozen(store, task_id, plugin.boot, task)
    except CheckpointError:  # nothing can be known: the worker's own barrier opens when its lease has ended
        return bool(FROZEN.byte[0])
