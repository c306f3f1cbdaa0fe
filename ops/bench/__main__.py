"""`make bench PART=…`: measure one part beside its floor. Exit 0 measured, 1 failed, 2 no such part."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from ops.bench import body, freeze, restore, soul
from ops.servers.child import ServerError

_PARTS = {"freeze": freeze.measure, "soul": soul.measure, "body": body.measure, "restore": restore.measure}


def main(arguments: list[str]) -> int:
    """Run the part that is named and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupted)
    part = arguments[0] if len(arguments) == 1 else ""
    if part not in _PARTS:
        print(f"bench: PART must be one of {', '.join(_PARTS)}", file=sys.stderr)
        return 2
    try:
        _PARTS[part]()
    except ServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
