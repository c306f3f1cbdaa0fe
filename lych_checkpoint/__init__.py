"""Freeze a Celery system, seal its code and its PostgreSQL data as one pair, and bring both back together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lych_checkpoint import gate
    from lych_checkpoint.errors import (
        Away,
        CheckpointError,
        Damage,
        FreezeError,
        GateRefused,
        GateUnsure,
        LockHeld,
        Refused,
        RestoreOpen,
        SettingError,
    )
    from lych_checkpoint.evolution import EvolutionTask, imprint, safepoint
    from lych_checkpoint.plugin import install
else:
    # Every `celery` command of every app in this environment imports the package for the sake of our verbs; what a
    # public name stands for comes with its first use.
    def __getattr__(name: str) -> object:
        if name == "gate":
            return importlib.import_module("lych_checkpoint.gate")
        if name in __all__:
            evolution = ("EvolutionTask", "imprint", "safepoint")
            room = "plugin" if name == "install" else "evolution" if name in evolution else "errors"
            return getattr(importlib.import_module(f"lych_checkpoint.{room}"), name)
        raise AttributeError(f"module 'lych_checkpoint' has no attribute {name!r}")


__all__ = [
    "Away",
    "CheckpointError",
    "Damage",
    "EvolutionTask",
    "FreezeError",
    "GateRefused",
    "GateUnsure",
    "LockHeld",
    "Refused",
    "RestoreOpen",
    "SettingError",
    "gate",
    "imprint",
    "install",
    "safepoint",
]
