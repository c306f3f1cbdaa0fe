"""Freeze a Celery system, seal its code and its PostgreSQL data as one pair, and bring both back together."""

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
