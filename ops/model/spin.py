"""Run one check: spin writes a verifier in C, gcc compiles it, it visits every state."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lych_checkpoint.process import run
from ops.model.checks import HOLDS, PROPERTIES, REACHED, Check

_MODEL = Path(__file__).with_name("freeze.pml")
#: For one verifier; two run at once.
_MEMORY_MB = 1900
_PATIENCE_S = 300
#: Far above what any run needs; a deeper one is reported as incomplete.
_DEPTH = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a verifier said. ``verdict`` is like `Check.expected`, or ``incomplete`` with the reason."""

    verdict: str
    states: int
    seconds: float


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in ("spin", "gcc") if shutil.which(program) is None]


def verify(check: Check) -> Found:
    """Build and run the verifier of one check in a folder of its own.

    Raises:
        Refused: the model does not compile, or the verifier took too long.
    """
    with tempfile.TemporaryDirectory(prefix="lych-model-") as folder:
        here = Path(folder)
        switches = [f"-D{name}={value}" for name, value in check.switches.items()]
        run(["spin", "-a", *switches, _MODEL], cwd=here)
        # A mistake is found at once: optimising its verifier would take longer than running it.
        speed = "-O2" if check.expected == HOLDS else "-O0"
        # No partial order reduction: all state is shared, there is nothing to reduce.
        run(["gcc", speed, "-w", "-DSAFETY", "-DNOFAIR", "-DNOREDUCE", f"-DMEMLIM={_MEMORY_MB}", "-o", "pan",
             "pan.c"], cwd=here)
        began_s = time.monotonic()
        said = run([here / "pan", f"-m{_DEPTH}", "-w24"], cwd=here, timeout_s=_PATIENCE_S)
        return Found(verdict=read_verdict(said), states=_states(said), seconds=time.monotonic() - began_s)


def read_verdict(said: str) -> str:
    """Return the verdict in a verifier's output.

    A claim of a property ends with ``(named==2)``, its number; a reachable end reads ``(1!=1)``.
    """
    broken = re.search(r"assertion violated (.*) \(at depth", said)
    if broken is not None:
        claim = re.search(r"\(named==(\d+)\)", broken[1])
        if claim is not None:
            return PROPERTIES[int(claim[1])]
        return REACHED if re.fullmatch(r"\s*\((\d+)!=\1\)", broken[1]) else f"broken: {broken[1].strip()}"
    for trouble in ("max search depth too small", "max memory reached", "Search not completed", "invalid end state"):
        if trouble.lower() in said.lower().replace("invalid end states\t", ""):
            return f"incomplete: {trouble}"
    return HOLDS if re.search(r"errors: 0$", said, re.MULTILINE) else "incomplete: no verdict"


def _states(said: str) -> int:
    found = re.search(r"^\s*(\S+) states, stored", said, re.MULTILINE)
    return int(float(found[1])) if found else 0
