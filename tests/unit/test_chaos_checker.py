"""The checker of `ops.chaos` finds each violation that it exists for, and nothing where there is none."""

from __future__ import annotations

import pytest

from ops.chaos import brokers
from ops.chaos.checker import Lease, Probe, Stamp, Window, frozen_past, lost, ran_inside

WINDOW = Window("one", 100.0, 101.0)


def stamps(*made: tuple[float, str]) -> list[Stamp]:
    """Stamps of one run of message 7."""
    return [Stamp(at, kind, 7, "run") for at, kind in made]


def probes(since: float, until: float, frozen_until: float, gap: tuple[float, float] = (0, 0)) -> list[Probe]:
    """One worker's probes, twenty a second, none inside ``gap``."""
    times = [since + number / 20 for number in range(int((until - since) * 20))]
    return [Probe(at, "w/1", at < frozen_until) for at in times if not gap[0] < at < gap[1]]


def test_stamps_are_read_as_they_are_written() -> None:
    assert Stamp.read("1700000000.123456 step 7 abc 4711") == Stamp(1700000000.123456, "step", 7, "abc")
    assert Probe.read("1700000000.1 solo@local/12 frozen") == Probe(1700000000.1, "solo@local/12", True)


@pytest.mark.parametrize("bad", [
    stamps((100.5, "start"), (100.6, "end")),
    stamps((99.0, "start"), (100.5, "step"), (102.0, "end")),
    stamps((99.0, "start"), (100.9, "step")),
    stamps((100.99, "start"), (102.0, "end")),
    stamps((99.0, "start"), (102.0, "end")),
    stamps((99.0, "pause"), (100.2, "resume"), (102.0, "end")),
])
def test_body_at_work_in_a_sealed_window_is_found(bad: list[Stamp]) -> None:
    found = ran_inside(bad, [Window("other", 1.0, 2.0), WINDOW])
    assert found
    assert all(line.startswith("one claims [100.000, 101.000]: message 7") for line in found)


@pytest.mark.parametrize("good", [
    stamps((99.0, "start"), (100.0, "end")),
    stamps((101.0, "start"), (102.0, "end")),
    stamps((99.0, "start"), (99.5, "step")),  # killed before the window
    stamps((99.0, "start"), (99.5, "pause"), (101.0, "resume"), (102.0, "end")),
])
def test_body_outside_a_sealed_window_is_no_violation(good: list[Stamp]) -> None:
    assert ran_inside(good, [WINDOW]) == []


def test_two_runs_of_one_message_are_told_apart() -> None:
    twice = [Stamp(99.0, "start", 7, "killed"), Stamp(102.0, "start", 7, "again"), Stamp(103.0, "end", 7, "again")]
    assert ran_inside(twice, [WINDOW]) == []


def test_worker_frozen_past_its_lease_is_found() -> None:
    assert frozen_past(probes(9, 14, frozen_until=12.5), [Lease(9.0, 11.0)])
    assert frozen_past(probes(9, 14, frozen_until=12.5), [])
    assert frozen_past(probes(9, 14, frozen_until=12.5), [Lease(9.0, 11.0), Lease(13.0, 15.0)])


def test_worker_frozen_within_its_second_is_no_violation() -> None:
    assert frozen_past(probes(9, 14, frozen_until=11.9), [Lease(9.0, 11.0)]) == []


def test_stopped_worker_has_its_second_after_it_woke() -> None:
    leases = [Lease(9.0, 11.0)]
    assert frozen_past(probes(9, 22, frozen_until=20.9, gap=(10, 20)), leases) == []
    assert frozen_past(probes(9, 24, frozen_until=22.0, gap=(10, 20)), leases)


def test_message_that_never_ended_is_found_unless_a_torn_connection_accounts_for_it() -> None:
    ran = [Stamp(1.0, "end", 1, "a"), Stamp(1.0, "start", 2, "b")]
    assert "2, 3" in lost([1, 2, 3], ran, allowed=1)[0]
    assert lost([1, 2, 3], ran, allowed=2) == []
    assert lost([1], ran, allowed=0) == []


def test_a_seed_always_means_the_same_brokers() -> None:
    assert brokers.kinds("redis", 8) == [brokers.REDIS]
    chosen = [brokers.kinds("both", seed) for seed in range(20)]
    assert chosen == [brokers.kinds("both", seed) for seed in range(20)]
    assert {kind for kinds in chosen for kind in kinds} == {brokers.REDIS, brokers.CLASSIC, brokers.QUORUM}
    assert all(kinds[0] == brokers.REDIS and kinds[1:] == brokers.kinds("rabbitmq", seed)
               for seed, kinds in enumerate(chosen))


def test_only_redis_may_lose_a_message_with_a_connection() -> None:
    assert [kind for kind in (brokers.REDIS, brokers.CLASSIC, brokers.QUORUM)
            if brokers.connections_lose_messages(kind)] == [brokers.REDIS]
