"""Whether /etc/fstab mounts a subvolume by its number, which stays with the displaced data when two are exchanged."""

from __future__ import annotations

import uuid
from pathlib import Path

_FSTAB = Path("/etc/fstab")
_LINKS = {"LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}


def by_number(file_system: str, number: int) -> str | None:
    """Return where the subvolume ``number`` of that Btrfs would be mounted by number at the next boot, or None.

    What is mounted now says nothing: the kernel tells the number of every mount, however it was asked for.
    """
    try:
        lines = _FSTAB.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 4 or fields[0].startswith("#"):
            continue
        numbers = [one.removeprefix("subvolid=") for one in fields[3].split(",") if one.startswith("subvolid=")]
        if any(one.isdigit() and int(one) == number for one in numbers) and _is_on(fields[0], file_system):
            return fields[1]
    return None


def _is_on(source: str, file_system: str) -> bool:
    """Whether a source is of that Btrfs; what cannot be told counts."""
    kind, _, value = source.partition("=")
    value = value.strip('"')
    if kind == "UUID":
        return value.replace("-", "").lower() == file_system
    device = Path("/dev/disk", _LINKS[kind], value) if kind in _LINKS else Path(source)
    devices = Path("/sys/fs/btrfs", str(uuid.UUID(file_system)), "devices")
    if not device.exists() or not devices.is_dir():
        return True
    return device.resolve().name in {one.name for one in devices.iterdir()}
