"""A sample of the kill matrix; all of it is `python -m ops.kills`. LYCH_TEST_KILLS sets the kills of each driver."""

from __future__ import annotations

import os

import pytest

from ops.kills.__main__ import DRIVERS, GROUNDS, kill
from ops.kills.acts import ACTS
from ops.servers.child import ServerError
from tests.fixtures.lacking import lacks

_SEED = 7
#: They restore as `btrfs` does, with slower copies; and so they undo and recover.
_SLOW = ("reflink", "pitr")
_SAMPLES = {"btrfs": 9, "reflink": 6, "pitr": 6, "dump": 9}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_restore_that_is_killed_anywhere_ends_old_or_new(driver: str) -> None:
    sample = int(os.environ.get("LYCH_TEST_KILLS", _SAMPLES[driver]))
    kept = {name: value for name, value in os.environ.items() if name.startswith("LYCH_")}
    try:
        kind, variable = GROUNDS.get(driver, ("", "PATH"))
        if os.geteuid() and variable not in os.environ:
            lacks(f"needs root for a loop device, or {variable}=/path on a {kind}")
        try:
            found = list(kill(driver, sample, _SEED, ("restore",) if driver in _SLOW else tuple(ACTS)))
        except ServerError as error:
            if "mkfs" in str(error) or "mount" in str(error):
                lacks(str(error))
            raise
    finally:
        for name in [name for name in os.environ if name.startswith("LYCH_")]:
            del os.environ[name]
        os.environ.update(kept)
    assert [str(one) for one in found if not one.good] == []
    assert len(found) == sample
    assert {one.pair for one in found} == {"old", "new"}
