"""The control bell: Celery's own broadcast, which any Celery tool can see."""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.control import control_command, inspect_command

from lych_checkpoint.errors import CheckpointError

logger = logging.getLogger(__name__)

#: Name of the broadcast; its arguments are the federation's uuid, what happened, and in which epoch.
BELL = "checkpoint_bell"


@control_command(name=BELL, args=[("uuid", str), ("act", str), ("epoch", int)])
def bell(state: Any, uuid: str = "", act: str = "", epoch: int = 0) -> dict[str, str]:
    """Look at the lease now, unless the other bell was heard. Harmless whoever sends it: the lease alone decides."""
    member = getattr(state.consumer.controller, "lych_member", None)
    if member is None or uuid != member.federation:
        return {"ok": "not mine"}
    try:
        if not member.heard(act, int(epoch)):
            member.look()
    except CheckpointError as error:
        logger.debug("The bell (%s) rang and the lease cannot be read: %s", act, error)
    return {"ok": "frozen" if member.frozen else "thawed"}


@inspect_command(name="checkpoint_state")
def checkpoint_state(state: Any) -> dict[str, str]:
    """Tell whether this worker is frozen, and of which federation it is."""
    member = getattr(state.consumer.controller, "lych_member", None)
    if member is None:
        return {"state": "foreign"}
    return {"state": "frozen" if member.frozen else "thawed", "federation": member.federation}
