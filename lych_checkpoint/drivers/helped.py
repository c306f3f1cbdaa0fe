"""A driver behind LYCH_HELPER: a program that runs as PGDATA's owner and takes fixed verbs, and no path, from us.

It captures, verifies and removes. A restore stops and starts the server, and needs the owner's rights itself.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lych_checkpoint import errors
from lych_checkpoint.drivers.base import Evidence, Unfit
from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.process import Conversation, conversing

#: What a helper may take: to copy the cluster's files, and in the window.
_WORK_S, _CAPTURE_S = 24 * 3600.0, 10.0


class Helped:
    """The half of the driver ``name`` that captures, run by ``argv``: one helper from `prepare` to its end."""

    def __init__(self, name: str, argv: tuple[str, ...], owner: str = "") -> None:
        self.name = name
        self._argv = argv
        self._owner = owner
        self._session = ExitStack()
        self._helper: Conversation | None = None
        self._finished = False

    def probe(self) -> Unfit | None:
        """Return None if the helper can work here, else why not."""
        try:
            said = self._once("probe")
            unfit = None if said is None else Unfit(str(said["what"]), str(said["mend"]))
        except Refused as error:
            unfit = Unfit(error.what, error.mend or "see LYCH_HELPER in docs/settings.md")
        except (KeyError, TypeError):
            unfit = Unfit("it is of another release", "install the same release for both")
        return None if unfit is None else Unfit(f"LYCH_HELPER: {unfit.what}", unfit.mend)

    def preflight(self) -> list[str]:
        """Refuse what the driver would capture wrongly now; return its warnings."""
        return list(self._once("preflight"))

    def prepare(self, checkpoint: str, into: Path) -> None:  # noqa: ARG002 - the helper takes no path
        """Do before the freeze all that can be done; the helper waits from now on."""
        self._helper = self._session.enter_context(conversing(self._argv))
        self._ask("prepare", checkpoint=checkpoint)

    def capture(self) -> None:
        """Take the instant."""
        self._ask("capture", timeout_s=_CAPTURE_S)

    def finish(self) -> Evidence:
        """Make the capture durable."""
        evidence: Evidence = self._ask("finish")
        self._finished = True
        return evidence

    def keep(self) -> None:
        """Keep the copy for good, and hang up."""
        with self._session:
            self._ask("keep")

    def abort(self) -> None:
        """Hang up: a helper that nobody listens to leaves nothing behind but what it finished, which it is told."""
        finished, self._finished = self._finished, False
        with self._session:
            if finished:
                self._ask("abort")

    def begun(self) -> dict[str, str]:
        """Return the copies of ours whose makers died before `keep`, by checkpoint, with their driver."""
        return dict(self._once("begun"))

    def take_back(self, checkpoint: str, *, sealed: bool) -> None:
        """Remove a copy that a dead maker left; of a sealed checkpoint only its mark."""
        self._once("take_back", checkpoint=checkpoint, sealed=sealed)

    def verify(self, evidence: Evidence, folder: Path, *, deep: bool = False) -> list[str]:  # noqa: ARG002
        """Return each damage in one sentence."""
        return list(self._once("verify", evidence=evidence, deep=deep))

    def discard(self, evidence: Evidence) -> None:
        """Remove a checkpoint's copy."""
        self._once("discard", evidence=evidence)

    def _once(self, verb: str, **arguments: Any) -> Any:
        with conversing(self._argv) as helper:
            return self._said(helper, verb, _WORK_S, arguments)

    def _ask(self, verb: str, timeout_s: float = _WORK_S, **arguments: Any) -> Any:
        if self._helper is None:
            raise RuntimeError("prepare was not called")
        return self._said(self._helper, verb, timeout_s, arguments)

    def _said(self, helper: Conversation, verb: str, timeout_s: float, arguments: dict[str, Any]) -> Any:
        line = json.dumps({"verb": verb, "driver": self.name, "owner": self._owner, **arguments}).encode()
        try:
            answer = json.loads(helper.ask(line, timeout_s))
            if "error" not in answer:
                return answer["done"]
            kind, error = getattr(errors, str(answer["error"].pop("kind")), Refused), answer["error"]
            said: CheckpointError = kind(**error)
        except (ValueError, KeyError, TypeError, AttributeError) as error_of_ours:
            raise Refused("LYCH_HELPER answered something else than an answer", self._argv[0],
                          "set it to the argv of lych-checkpoint-helper", "helper-odd") from error_of_ours
        raise said
