"""Tokens: one for every request that has passed the barrier and whose pool callback has not come back.

Celery's own books (`inspect active`, `reserved`) are wrong for this: a task that is on its way to a child is in
neither, and a revoked one leaves both while its body still runs. The pool's callback fires after the child wrote the
result, so a token is gone only when the body is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from billiard.exceptions import TimeLimitExceeded

from lych_checkpoint.worker.ghosts import Ghosts


@dataclass(slots=True, eq=False)
class Token:
    """One request between barrier and callback. ``result`` is the pool's own handle, once it has one."""

    task_id: str
    task: str
    exempts: Callable[[str], bool]
    taken_s: float
    submitted: bool = False
    result: Any = None

    @property
    def exempt(self) -> bool:
        """Whether its task may run through a freeze."""
        return self.exempts(self.task)


class Tokens:
    """All tokens of one worker. Thread-safe.

    What a task passes through here is short, for every task pays for it. ``exempts`` says of a task's name whether it
    may run through a freeze; it is asked in a freeze only.
    """

    def __init__(self, released: Callable[[], None], exempts: Callable[[str], bool]) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[int, Token] = {}
        self._pending: dict[str, Token] = {}
        self._failed: list[str] = []
        self._released, self._exempts = released, exempts
        self._ghosts = Ghosts()

    def take(self, task_id: str, task: str) -> Token:
        """Count a request that is about to go to the pool."""
        token = Token(task_id, task, self._exempts, time.monotonic())
        with self._lock:
            self._tokens[id(token)] = token
            self._pending[task_id] = token
        return token

    def release(self, token: Token, *, failed: bool = False) -> None:
        """Stop counting; safe to call twice. ``failed``: its process may have died while parked."""
        with self._lock:
            known = self._tokens.pop(id(token), None)
            if not token.submitted and self._pending.get(token.task_id) is token:
                del self._pending[token.task_id]
            if failed:
                self._failed.append(token.task_id)
        token.result = None  # its callbacks hold the token: a circle, and the collector's work with every task
        if known is not None:
            self._released()

    def wrap(self, apply_async: Callable[..., Any], *, inside: bool = False) -> Callable[..., Any]:
        """Return the pool's `apply_async` with the token's end tied to its callbacks.

        ``inside``: the body runs in another thread or greenlet of this process. Such a pool calls nobody back for
        what ends by an exception, a hard time limit under gevent among them, but the exception passes here.
        """

        def counted(target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
            with self._lock:
                token = self._pending.pop(str(options.get("correlation_id")), None)
            if token is None:
                return apply_async(target, args, kwargs, **options)
            token.submitted = True
            options["callback"] = partial(self._end, token, options.get("callback"))
            options["error_callback"] = partial(self._fail, token, options.get("error_callback"))
            if inside:
                target = partial(self._pass, token, target)
                options["accept_callback"] = partial(self._pass, token, options.get("accept_callback"))
            try:
                token.result = apply_async(target, args, kwargs, **options)
            except BaseException:
                self.release(token)
                raise
            return token.result

        return counted

    def _end(self, token: Token, callback: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs) if callback is not None else None
        finally:
            self.release(token)

    def _fail(self, token: Token, callback: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs) if callback is not None else None
        finally:
            release = partial(self.release, token, failed=True)
            # The pool says so first, and only then ends the child; the body runs until that is done.
            if not (_is_over_its_time(*args) and self._ghosts.keep_until_dead(token.result, release)):
                release()

    def _pass(self, token: Token, part: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
        try:
            return part(*args, **kwargs) if part is not None else None
        except BaseException:
            self.release(token)
            raise

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._tokens)

    def running(self) -> list[Token]:
        """Return the tokens in the order they were taken."""
        self._ghosts.sweep()
        with self._lock:
            return list(self._tokens.values())

    def take_failed(self) -> list[str]:
        """Return, once, the ids of tasks whose pool reported an error."""
        with self._lock:
            failed, self._failed = self._failed, []
        return failed

    def reconcile(self, pool: Any) -> None:
        """Drop tokens whose job the pool has forgotten: after a lost connection their callbacks never come.

        A job whose payload was already on its way to a child runs all the same; it stays counted until it is over.
        """
        for token in self.running():
            job = getattr(token.result, "_job", None)
            if job is None or job in pool._cache:  # noqa: SLF001 - the only list of live jobs
                continue
            if not self._ghosts.keep(token.result, pool, partial(self.release, token)):
                self.release(token)


def _is_over_its_time(info: Any = None, *_: Any) -> bool:
    return getattr(info, "type", None) is TimeLimitExceeded
