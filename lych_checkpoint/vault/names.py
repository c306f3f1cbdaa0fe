"""What a person may call a checkpoint."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from lych_checkpoint.errors import UnknownName
from lych_checkpoint.manifest import Manifest

_LATEST = re.compile(r"latest(?:~(\d{1,9}))?")
#: Shortest prefix of an id that counts as one.
_PREFIX_LENGTH = 4
#: So many ids are listed where several fit.
_LISTED = 5


def resolve(
    name: str, ids: Sequence[str], read: Callable[[str], Manifest], labels: Callable[[], dict[str, str]]
) -> str:
    """Return the id that ``name`` means.

    Args:
        name: an id, a unique prefix, `latest`, `latest~2`, or a label.
        ids: all that are sealed, oldest first.
        read: reads one manifest. A damaged one ends the search for `latest`: an older one in its place would be
            restored, or called whole, unasked.
        labels: gives the labels by id of all that can be read.

    Raises:
        UnknownName: none or several fit; the message lists the nearest, or those that fit.
        Damage: what `latest` counts past cannot be read.
    """
    if name in ids:
        return name
    relative = _LATEST.fullmatch(name)
    if relative:
        return _latest(name, int(relative[1] or 0), ids, read)
    labelled = labels()
    fitting = [one for one in ids if labelled.get(one) == name]
    if not fitting and len(name) >= _PREFIX_LENGTH:
        fitting = [one for one in ids if one.startswith(name)]
    if len(fitting) > 1:
        listed = ", ".join(fitting[-_LISTED:]) + (" and older ones" if len(fitting) > _LISTED else "")
        raise UnknownName(f"{len(fitting)} checkpoints fit: {listed}", name, "use a whole id", "ambiguous-name")
    if not fitting:
        near = difflib.get_close_matches(name, {*filter(None, labelled.values()), *ids[-100:], "latest"}, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownName(f"no checkpoint has this name{hint}", name, "lych-checkpoint list")
    return fitting[0]


def _latest(name: str, back: int, ids: Sequence[str], read: Callable[[str], Manifest]) -> str:
    passed = 0
    for one in reversed(ids):
        if read(one).safety:
            continue
        if passed == back:
            return one
        passed += 1
    raise UnknownName(f"there are only {passed} sealed checkpoints", name, "lych-checkpoint list")
