"""Which messages belong to the present, against a model that copies the whole queue's history at every checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lych_checkpoint.eras import Present, Stamp, gone, present

STEPS = st.lists(st.one_of(
    st.sampled_from(["publish", "imprint", "checkpoint"]), st.tuples(st.just("restore"), st.integers(0, 99)),
), max_size=40)


@given(steps=STEPS)
def test_what_a_restored_past_held_belongs_to_the_present_and_nothing_else_of_old(steps: list[Any]) -> None:
    now_ms, epoch, generation, newest, era = 0, 0, 1, 1, 0
    lived: frozenset[Stamp] = frozenset()  # every message of this history of the world
    made: frozenset[int] = frozenset({1})  # every generation of it
    published: set[Stamp] = set()
    sealed: list[tuple[frozenset[Stamp], frozenset[int], int, int, int]] = []
    lineage: list[dict[str, Any]] = [{"kind": "init", "generation": 1}]
    for step in steps:
        now_ms += 2
        if step == "publish":
            stamp = Stamp(era, epoch, now_ms)
            lived |= {stamp}
            published.add(stamp)
        elif step == "imprint":
            generation = newest = newest + 1
            made |= {generation}
            lineage.append({"kind": "imprint", "generation": generation})
        else:
            epoch += 1
            frozen = (lived, made, generation, epoch, now_ms)
            if step != "checkpoint":
                if not sealed:
                    continue
                lived, made, base, frozen_epoch, frozen_ms = sealed[step[1] % len(sealed)]
                newest += 1
                generation = era = newest
                made |= {era}
                lineage.append({"kind": "restore", "generation": era, "base": base, "epoch": frozen_epoch,
                                "frozen_ms": frozen_ms})
            sealed.append(frozen)  # a restore's is its safety copy
    found = present(lineage, era)
    assert found == present([*lineage, *lineage], 0)  # a restore that was cut off may write its line twice
    assert found.era == era
    assert {one for one in range(1, newest + 1) if not any(one in span for span in gone(lineage))} == made
    assert {stamp for stamp in published if not found.refusal(stamp)} == (lived if era else published)


@pytest.mark.parametrize("text", [None, "", "1:2", "1:2:3:4", "-1:2:3", "a:b:c", 7, "1:2:" + "9" * 19])
def test_a_stamp_that_cannot_be_read_is_none_and_is_refused_after_a_restore(text: object) -> None:
    assert Stamp.loads(text) is None
    assert Present(era=0).refusal(None) == ""
    assert "when it was published" in Present(era=3).refusal(None)


def test_a_stamp_comes_back() -> None:
    assert Stamp.loads(Stamp(3, 2, 1).dumps()) == Stamp(3, 2, 1)


def test_of_a_restore_that_the_lineage_does_not_know_no_past_can_be_told() -> None:
    lineage = [{"kind": "restore", "generation": 5, "base": 2, "epoch": 9, "frozen_ms": 9}]
    assert present(lineage, 7) == Present(era=7)
    assert present(lineage, 5).refusal(Stamp(0, 1, 1)) == ""


def test_a_publisher_that_saw_a_later_freeze_is_believed_over_its_clock() -> None:
    found = present([{"kind": "restore", "generation": 5, "base": 2, "epoch": 9, "frozen_ms": 100}], 5)
    assert found.refusal(Stamp(0, 9, 99)) == ""
    assert "after the checkpoint" in found.refusal(Stamp(0, 10, 99))
    assert "after the checkpoint" in found.refusal(Stamp(0, 9, 100))
