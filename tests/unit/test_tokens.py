"""Tokens: what one of them leaves behind when its request is over."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lych_checkpoint.worker.tokens import Tokens


class Job:
    """Holds its callbacks until it is dropped, as the pools' handles do."""

    def __init__(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def no_collector() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("which", "answers"), [("callback", [1]), ("error_callback", [None])])
@pytest.mark.usefixtures("no_collector")
def test_no_circle_is_left_for_the_collector(which: str, answers: list[Any]) -> None:
    jobs: list[Job] = []

    def apply_async(_target: Callable[..., Any], _args: Any = (), _kwargs: Any = None, **options: Any) -> Job:
        jobs.append(Job(**options))
        return jobs[-1]

    tokens = Tokens(lambda: None, lambda _name: False)
    tokens.take("id", "task")
    tokens.wrap(apply_async)(print, (), {}, correlation_id="id", callback=None, error_callback=None)
    assert len(tokens) == 1
    job = jobs.pop()
    job.options[which](*answers)
    assert len(tokens) == 0
    seen = weakref.ref(job)
    del job
    assert seen() is None
