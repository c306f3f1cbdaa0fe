"""When a process counts as dead: only by proof."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from lych_checkpoint.process import Identity

HERE = Identity("host", "boot 2", "pid:[4026531836]", 1, 1, "installation")
BEFORE = replace(HERE, machine="boot 1")


def test_machine_that_was_started_anew_ended_all_that_ran() -> None:
    assert BEFORE.is_of_an_earlier_start(HERE)
    assert not HERE.is_of_an_earlier_start(HERE)


@pytest.mark.parametrize("other", [
    replace(BEFORE, installation="another"),  # a cloned machine, or another host, of the same name
    replace(BEFORE, installation=""),  # a container of the same name
])
def test_name_proves_no_death(other: Identity) -> None:
    assert not other.is_of_an_earlier_start(HERE)
    assert not other.is_of_an_earlier_start(replace(HERE, installation=""))
    mine = Identity.mine()
    foreign = replace(mine, machine="another boot", installation=other.installation)
    assert foreign.alive() is None


def test_own_processes_are_seen() -> None:
    assert Identity.mine().alive() is True
    with subprocess.Popen(["sleep", "60"]) as child:
        identity = Identity.of(child.pid)
        assert identity.alive() is True
        child.kill()
        child.wait()
    assert identity.alive() is False
    assert replace(Identity.mine(), started=0).alive() is False
    assert replace(Identity.mine(), space="pid:[1]").alive() is None
