"""A coordinator that freezes, holds, confirms and thaws, without a capture: `python -m ops.chaos.coordinator HOLD_S`.

It goes the way of `create` and ends like it: 0 and a line in the file of windows only if the freeze held, else the
error's exit code. A freeze is quicker than a checkpoint, so a run meets more of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from celery import Celery

from lych_checkpoint import freeze
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease import gone, lock
from lych_checkpoint.settings import Settings
from ops.chaos.brokers import configuration


def main(hold_s: float) -> int:
    """Hold one freeze for ``hold_s`` and return the exit code."""
    federation = Federation(Settings.load())
    app = Celery("chaos", broker=os.environ["LYCH_TEST_BROKER_URL"])
    app.conf.update(configuration(os.environ["LYCH_TEST_BROKER_KIND"]))
    try:
        store = federation.store()
        with lock.held(store, "chaos") as held:
            gone.sweep(store, federation.settings.gone_after_s)
            gone.settle(store)
            terms = federation.terms(freeze.CHECKPOINT, "chaos")
            with freeze.thawing(store, terms, federation.ring(app)) as (frozen, thaw):
                frozen.wait_for_acks()
                frozen.drain()
                frozen.check_one_body()
                time.sleep(hold_s)
                frozen.confirm()
                facts = thaw()
            held.check()
    except CheckpointError as error:
        print(json.dumps(error.as_json()))
        return error.exit_code
    window = {"name": f"freeze {facts.epoch}", "frozen_at": facts.frozen_at, "thawed_at": facts.thawed_at}
    with (Path(os.environ["LYCH_TEST_RECORDS"]) / "windows").open("a") as file:
        file.write(json.dumps(window) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
