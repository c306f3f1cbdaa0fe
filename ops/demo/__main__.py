"""Run the demo: exit 0 if every claim held, 1 if one did not, 130 if interrupted; nothing is left behind."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from typing import NoReturn

from ops.demo import acts
from ops.demo.system import raised
from ops.demo.table import Story


def main() -> int:
    """Tell the story and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupted)
    story = Story()
    try:
        with ExitStack() as stack:
            with story.phase("Raise servers, a body of three repositories, and a soul"):
                system = stack.enter_context(raised())
                acts.begin(story, system)
            seal = acts.seal_under_load(story, system)
            acts.evolve(story, system)
            acts.wreck(story, system, seal)
            restored_at = acts.restore(story, system, seal)
            acts.go_another_way(story, system)
            freezes = acts.look_back(story, system, seal, restored_at)
            with story.phase("Take all of it away"):
                stack.close()
                acts.gone(story, system)
    except KeyboardInterrupt:
        story.failed("interrupted; nothing is left behind")
        return 130
    except Exception as error:  # a failed task's own exception may be of any class
        story.failed(f"{type(error).__name__}: {error}")
        return 1
    story.end(freezes)
    return 0


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
