"""Every error survives a pickle and a JSON document, and has an exit code that users were promised."""

from __future__ import annotations

import pickle

import pytest

from lych_checkpoint import errors
from lych_checkpoint.errors import CheckpointError

KINDS = [CheckpointError, *CheckpointError.__subclasses__()]
PROMISED = {
    "CheckpointError": 1, "SettingError": 2, "UnknownName": 2, "Refused": 1, "Damage": 3, "FreezeError": 4,
    "LockHeld": 5, "RestoreOpen": 6, "Away": 75, "GateUnsure": 75, "GateRefused": 78,
}


def test_exit_codes_are_those_promised() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == PROMISED


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: type[CheckpointError]) -> None:
    error = kind("what", "where", "mend", "code")
    error.add_note("and more")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.as_json() == {"code": "code", "what": "what", "where": "where", "mend": "mend"}
    assert str(again) == str(error) == "where: what (mend: mend)"
    assert again.__notes__ == ["and more"]


def test_what_is_not_known_is_left_out() -> None:
    assert str(errors.Refused("what")) == "what"
    assert errors.Refused("what").code == "refused"
    assert len({kind.default_code for kind in KINDS}) == len(KINDS)
