"""The tasks `checkpoint.create`, `verify` and `rehearse`. There is none for restore: see docs/design.md."""

from __future__ import annotations

from typing import Any, Protocol

from celery import Celery

from lych_checkpoint import coordinator, inspection, rehearsal
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import requests
from lych_checkpoint.records import SCHEMA


class Opens(Protocol):
    """What the tasks need of the plugin."""

    boot: str

    def federation(self) -> Federation:
        """Open the federation for one piece of work."""


def register(app: Celery, plugin: Opens) -> None:
    """Make the tasks known to the app."""

    @app.task(name="checkpoint.create", bind=True, ignore_result=False, acks_late=False)
    def create(self: Any, label: str | None = None, reason: str | None = None,
               tags: dict[str, str] | None = None, wait: bool = True) -> dict[str, Any]:
        """Seal a checkpoint; the result is the create document."""
        federation = plugin.federation()
        request = coordinator.Request(
            label=label or "", reason=reason or "", tags=tags or {}, wait=wait,
            task_id=self.request.id or "", task=self.name, boot=plugin.boot,
        )
        try:
            document = {"schema": SCHEMA, **coordinator.create(federation, request, app)}
        except CheckpointError as error:
            _tell(federation, self.request.id, {"error": error.as_json(), "exit_code": error.exit_code})
            raise
        _tell(federation, self.request.id, document)
        return document

    @app.task(name="checkpoint.verify", ignore_result=False)
    def verify(name: str = "latest") -> dict[str, Any]:
        """Verify a sealed checkpoint; fails with `Damage` if a byte is not what was sealed."""
        return {"schema": SCHEMA, **inspection.verify(plugin.federation(), name)}

    @app.task(name="checkpoint.rehearse", ignore_result=False)
    def rehearse(name: str = "latest") -> dict[str, Any]:
        """Rehearse a restore, aside; fails as the command does. For beat, or by hand."""
        return {"schema": SCHEMA, **rehearsal.rehearse(plugin.federation(), name)}


def _tell(federation: Federation, task_id: str | None, document: dict[str, Any]) -> None:
    if task_id:
        try:
            requests.tell_outcome(federation.store(), task_id, document)
        except CheckpointError:
            return  # whoever follows the task times out; the task's own result stands
