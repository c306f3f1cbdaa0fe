"""`python -m ops.model`: check the protocol's model.

Exit 0: as expected; 1: not, or more states than CI has time for; 77: no spin or gcc (1 under CI).
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from lych_checkpoint.errors import CheckpointError
from ops.model import checks, spin

_SKIPPED = 77
#: As many as two processors visit in two minutes, which is what CI has for it. Counted in states and not in seconds:
#: of those, slow machines and whatever else runs there would have their say.
_MOST_STATES = 65_000_000
_ROW = "{:<50} {:>11} {:>8}  {:<11} {}"


def main() -> int:
    """Run every check, as many at once as there are cores, at most two; print one table."""
    lacking = spin.missing()
    if lacking:
        wanted = f"model: {' and '.join(lacking)} not installed; apt-get install spin gcc"
        if os.environ.get("CI") == "true":
            print(wanted, file=sys.stderr)
            return 1
        print(f"{wanted}: skipped")
        return _SKIPPED
    began_s = time.monotonic()
    print(_ROW.format("configuration", "states", "seconds", "expected", "found"))
    at_once = min(2, os.cpu_count() or 1)
    with ThreadPoolExecutor(at_once) as pool:
        running = [(check, pool.submit(spin.verify, check)) for check in checks.ALL]
        wrong = sum(not _is_as_expected(check, found) for check, found in running)
    took_s = time.monotonic() - began_s
    print(f"{len(running)} checks in {took_s:.0f} s, {wrong or 'none'} not as expected")
    states = sum(found.result().states for _, found in running if found.exception() is None)
    if os.environ.get("CI") == "true" and states > _MOST_STATES:
        print(f"model: it visits {states:,} states, and must not visit more than {_MOST_STATES:,}", file=sys.stderr)
        return 1
    return 1 if wrong else 0


def _is_as_expected(check: checks.Check, running: Future[spin.Found]) -> bool:
    try:
        found = running.result()
    except CheckpointError as error:
        found = spin.Found(verdict=str(error), states=0, seconds=0.0)
    same = found.verdict == check.expected and found.states > 0
    print(_ROW.format(check.name, f"{found.states:,}", f"{found.seconds:.1f}", check.expected,
                      found.verdict if same else f"{found.verdict}  <-- not as expected"), flush=True)
    return same


if __name__ == "__main__":
    sys.exit(main())
