"""Word of what takes long: every few seconds a line in the log, which the command shows on a terminal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lych_checkpoint.errors import CheckpointError

logger = logging.getLogger(__name__)

#: What ends sooner says nothing.
EVERY_S = 5.0


@contextmanager
def told(what: str, so_far_bytes: Callable[[], int], about_bytes: int = 0) -> Iterator[None]:
    """Say how far ``what`` is for as long as the block runs.

    Args:
        what: begins each line.
        so_far_bytes: asked from a thread of its own; that it cannot tell is no failure.
        about_bytes: how many it will be in the end, if that is known.
    """
    done = threading.Event()

    def tell() -> None:
        whole = f" of about {_mega(about_bytes)}" if about_bytes else ""
        while not done.wait(EVERY_S):
            try:
                so_far = so_far_bytes()
            except (OSError, CheckpointError) as error:
                logger.debug("%s: %s", what, error)
                continue
            logger.info("%s: %s%s", what, _mega(so_far), whole,
                        extra={"event": "progress", "so_far_bytes": so_far, "about_bytes": about_bytes})

    thread = threading.Thread(target=tell, name="lych-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def written_bytes(path: Path) -> int:
    """Return what the file ``path`` holds, or the files in the directory."""
    return sum(one.stat().st_size for one in (path.iterdir() if path.is_dir() else (path,)))


def _mega(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:,.0f} MB"
