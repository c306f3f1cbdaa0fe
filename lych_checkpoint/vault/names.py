"""What a person may call a checkpoint."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from lych_checkpoint.errors import UnknownName
from lych_checkpoint.manifest import Manifest

_LATEST = re.compile(r"latest(?:~(\d+))?")
#: Shortest prefix of an id that counts as one.
_PREFIX_LENGTH = 4


def resolve(name: str, manifests: Sequence[Manifest]) -> Manifest:
    """Return the one of ``manifests`` (oldest first) that ``name`` means; ids themselves are the caller's.

    Raises:
        UnknownName: none or several fit; the message lists the nearest, or all that fit.
    """
    relative = _LATEST.fullmatch(name)
    if relative:
        own = [one for one in manifests if not one.safety]
        back = int(relative[1] or 0)
        if back >= len(own):
            raise UnknownName(f"there are only {len(own)} sealed checkpoints", name, "lych-checkpoint list")
        return own[-1 - back]
    fitting = [one for one in manifests if one.label == name]
    if not fitting and len(name) >= _PREFIX_LENGTH:
        fitting = [one for one in manifests if one.id.startswith(name)]
    if len(fitting) > 1:
        listed = ", ".join(one.id for one in fitting[:5])
        raise UnknownName(f"{len(fitting)} checkpoints fit: {listed}", name, "use a whole id", "ambiguous-name")
    if not fitting:
        near = difflib.get_close_matches(name, [one.label or one.id for one in manifests] + ["latest"], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownName(f"no checkpoint has this name{hint}", name, "lych-checkpoint list")
    return fitting[0]
