"""`make chaos`: random freezes under random faults. Exit 0: nothing was violated; 1: something was; 2: usage."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from typing import NoReturn

from ops.chaos import brokers
from ops.chaos.ground import raised
from ops.chaos.run import Run
from ops.servers.child import ServerError


def main() -> int:
    """Run, judge, tell; a run that violated something leaves its directory."""
    arguments = argparse.ArgumentParser(prog="python -m ops.chaos", description=__doc__)
    arguments.add_argument("--broker", choices=["redis", "rabbitmq", "both"], default="both")
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments.add_argument("--rounds", type=int, default=0, help="how many freezes on each broker")
    arguments.add_argument("--minutes", type=float, default=2.0, help="or how long, where --rounds is not given")
    asked = arguments.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)
    kinds = brokers.kinds(asked.broker, asked.seed)
    failed = False
    for kind in kinds:
        print(f"chaos: {kind}, seed {asked.seed}", flush=True)
        began_s = time.monotonic()
        try:
            trial(kind, asked.seed, asked.rounds, asked.minutes * 60 / len(kinds))
        except ServerError as error:
            print(f"chaos: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"chaos: nothing was violated in {time.monotonic() - began_s:.0f} s", flush=True)
    return int(failed)


def trial(kind: str, seed: int, rounds: int, seconds: float) -> None:
    """Run over one broker for ``rounds``, or for ``seconds`` if they are none.

    Raises:
        ServerError: something was violated, or could not be raised; the text says what, and where the records are.
    """
    end_s = time.monotonic() + seconds
    with raised(kind) as ground:
        run = Run(ground, seed)
        run.prepare()
        number = 0
        while number < rounds if rounds else time.monotonic() < end_s:
            number += 1
            run.round(number)
        run.calm()
        run.settle()
        found = run.verdict()
        if found:
            print(run.log.read_text(), file=sys.stderr)
            raise ServerError("\n".join([*found, f"{kind}, seed {seed}; records are in {ground.home}"]))


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
