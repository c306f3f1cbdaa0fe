"""The soul's drivers: which there are, and which fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from lych_checkpoint.drivers.base import Driver, Ground, Unfit
from lych_checkpoint.drivers.btrfs import BtrfsDriver
from lych_checkpoint.drivers.dump import DumpDriver
from lych_checkpoint.drivers.helped import Helped
from lych_checkpoint.drivers.pitr import PitrDriver
from lych_checkpoint.drivers.reflink import ReflinkDriver
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.process import Owner

#: In the order in which `auto` tries them: the shortest window first, but last what keeps the data a second time.
DRIVERS: Mapping[str, Callable[[Ground], Driver]] = MappingProxyType(
    {"btrfs": BtrfsDriver, "reflink": ReflinkDriver, "dump": DumpDriver, "pitr": PitrDriver})

#: Those that work on PGDATA's files, and so may need LYCH_HELPER.
HELPED = ("btrfs", "reflink", "pitr")


def reports(ground: Ground, helper: tuple[str, ...] = ()) -> list[tuple[str, Unfit | None]]:
    """Return every driver with None if it fits, else why not."""
    return [(name, _reason(chosen(ground, name, helper))) for name in DRIVERS]


def begun(ground: Ground, helper: tuple[str, ...]) -> dict[str, str]:
    """Return the copies of ours beside PGDATA whose makers died before they were sealed, with their driver.

    Nothing where PGDATA is not here, or not for us to see. Whichever driver is asked knows of all.
    """
    try:
        return chosen(ground, HELPED[0], helper).begun()
    except (CheckpointError, OSError):
        return {}


def select(ground: Ground, wanted: str, helper: tuple[str, ...] = ()) -> Driver | Helped:
    """Return the driver ``wanted``, or with ``auto`` the first that fits.

    Raises:
        Refused: it does not fit, or none does (code ``driver-unavailable``).
        Away: the server cannot be asked.
    """
    reasons, mend = [], "lych-checkpoint doctor"
    for name in DRIVERS if wanted == "auto" else [wanted]:
        driver = chosen(ground, name, helper)
        unfit = driver.probe()
        if unfit is None:
            return driver
        reasons.append(f"{name}: {unfit.what}")
        mend = mend if wanted == "auto" else unfit.mend
    raise Refused("; ".join(reasons), "LYCH_DRIVER", mend, "driver-unavailable")


def chosen(ground: Ground, name: str, helper: tuple[str, ...]) -> Driver | Helped:
    """Return the driver of that name, behind ``helper`` where PGDATA is somebody else's. Errors as `named`."""
    if helper and name in HELPED and not _is_ours(ground):
        return Helped(name, helper, ground.owner)
    return named(ground, name)


def named(ground: Ground, name: str) -> Driver:
    """Return the driver of that name, unasked whether it fits.

    Raises:
        Refused: this release has none of that name (code ``driver-unavailable``).
    """
    if name not in DRIVERS:
        raise Refused(f"there is no driver {name!r}", "LYCH_DRIVER", f"use one of {', '.join(DRIVERS)}",
                      "driver-unavailable")
    return DRIVERS[name](ground)


def _is_ours(ground: Ground) -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return ground.pgdata is not None and Owner.of(ground.pgdata).is_me
    except OSError:
        return False


def _reason(driver: Driver | Helped) -> Unfit | None:
    try:
        return driver.probe()
    except CheckpointError as error:
        return Unfit(f"{error.where}: {error.what}", error.mend or "look into the server's log")
