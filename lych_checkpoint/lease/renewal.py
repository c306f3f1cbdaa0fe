"""A lease kept alive for as long as its coordinator lives."""

from __future__ import annotations

import logging
import threading

from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.lease import lease
from lych_checkpoint.lease.connection import ANSWER_TIMEOUT_S, Store

logger = logging.getLogger(__name__)


class Renewal:
    """Renews a lease from a thread of its own; never brings one back that has ended."""

    def __init__(self, store: Store, token: str, lease_s: float) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(store, token, lease_s), name="lych-lease", daemon=True)
        self._thread.start()

    def _run(self, store: Store, token: str, lease_s: float) -> None:
        while not self._done.wait(lease_s / 3):
            try:
                if not lease.renew(store, token, lease_s):
                    return
            except CheckpointError as error:
                logger.warning("The lease could not be renewed: %s", error, extra={"event": "lease.silent"})

    def stop(self) -> None:
        """Stop renewing."""
        self._done.set()
        self._thread.join(timeout=2 * ANSWER_TIMEOUT_S)
