"""What a measurement is: samples beside their floor, a header that says where and when, JSON and a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path("bench-results")
_PACKAGES = ("lych_checkpoint", "celery", "kombu", "redis", "psycopg", "GitPython")
_NAPS, _NAP_S = 100, 0.002


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one thing in milliseconds; ``floor`` names the row they are compared with, if any."""

    what: str
    variant: str
    samples_ms: tuple[float, ...]
    floor: str = ""

    @property
    def p50_ms(self) -> float:
        """Median."""
        return statistics.median(self.samples_ms)

    @property
    def p95_ms(self) -> float:
        """The sample that 95 of 100 do not exceed (nearest rank)."""
        ordered = sorted(self.samples_ms)
        return ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]


def header(directory: Path, servers: Mapping[str, str]) -> dict[str, Any]:
    """Return where this runs: machine, file system of ``directory``, versions, and how noisy it is now."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], check=True, capture_output=True, text=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True)
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "machine": {
            "cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(),
            "memory_bytes": int(memory.split()[1]) * 1024, "kernel": platform.release(),
        },
        "file_system": kind.stdout.strip(),
        "versions": {
            "python": platform.python_version(), **{name: version(name) for name in _PACKAGES}, **servers,
        },
        "noise": noise(),
    }


def noise() -> dict[str, float]:
    """Return the load and how late short sleeps wake (ms): a quiet machine is at a few hundredths."""
    late = []
    for _ in range(_NAPS):
        began_s = time.perf_counter()
        time.sleep(_NAP_S)
        late.append((time.perf_counter() - began_s - _NAP_S) * 1000)
    row = Row("late", "", tuple(late))
    return {"load_1m": os.getloadavg()[0], "late_p50_ms": round(row.p50_ms, 3), "late_p95_ms": round(row.p95_ms, 3)}


def report(part: str, head: dict[str, Any], rows: Sequence[Row]) -> Path:
    """Write ``bench-results/PART-TIME.json``, print the table, and return the file."""
    head = {**head, "n": max(len(row.samples_ms) for row in rows), "noise_after": noise()}
    by_name = {(row.what, row.variant): row for row in rows}
    document = {
        "schema": 1, "part": part, "header": head,
        "rows": [{**asdict(row), "p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "max_ms": max(row.samples_ms),
                  "n": len(row.samples_ms), "ratio_p50": _ratio(row, by_name)} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    stamp = str(head["at"]).replace(":", "").replace("-", "")
    path = RESULTS / f"{part}-{stamp}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    machine = head["machine"]
    table = Table(
        title=f"{part}: {machine['cores']} cores, {head['file_system']}, load {head['noise']['load_1m']:.1f}, "
              f"sleeps wake {head['noise']['late_p95_ms']:.2f} ms late (p95)",
    )
    for column in ("what", "", "p50 ms", "p95 ms", "max ms", "n", "× floor (p50)"):
        table.add_column(column, justify="left" if column in ("what", "") else "right")
    for row in rows:
        ratio = _ratio(row, by_name)
        table.add_row(
            row.what, row.variant, _shown(row.p50_ms), _shown(row.p95_ms), _shown(max(row.samples_ms)),
            str(len(row.samples_ms)), f"{ratio:.2f}" if ratio is not None else "",
        )
    console = Console()
    console.print(table)
    console.print(f"written to {path}")
    return path


def document(
    part: str, title: str, text: str, head: Mapping[str, Any], rows: Sequence[Row],
    goals_ms: Mapping[tuple[str, str], float],
) -> str:
    """Return what `docs/bench-PART.md` says: where and when, ``text``, each row beside its floor and its goal."""
    by_name = {(row.what, row.variant): row for row in rows}
    machine, then, now = head["machine"], head["noise"], noise()
    versions = ", ".join(f"{name} {one}" for name, one in head["versions"].items())
    where = (f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_bytes'] / 1e9:.0f} GB, "
             f"Linux {machine['kernel']}, {head['file_system']}; load {then['load_1m']:.1f} before and "
             f"{now['load_1m']:.1f} after, sleeps wake {then['late_p95_ms']:.2f} and {now['late_p95_ms']:.2f} ms "
             f"late (p95); {versions}")
    lines = [
        f"# {title}", "",
        f"`make bench PART={part}` on {str(head['at'])[:10]} at commit {head['commit']}: {where}.", "", text, "",
        "| what | | p50 ms | p95 ms | max ms | n | × floor | goal (p50) |", "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio, goal_ms = _ratio(row, by_name), goals_ms.get((row.what, row.variant))
        judged = "" if goal_ms is None else f"≤ {goal_ms:g} ms: {'met' if row.p50_ms <= goal_ms else '**missed**'}"
        lines.append(f"| {row.what} | {row.variant} | {_shown(row.p50_ms)} | {_shown(row.p95_ms)} | "
                     f"{_shown(max(row.samples_ms))} | {len(row.samples_ms)} | "
                     f"{'' if ratio is None else f'{ratio:.2f}'} | {judged} |")
    return "\n".join(lines) + "\n"


def _shown(took_ms: float) -> str:
    """Return milliseconds, of which a table's column is, or so many nanoseconds where that would be nought."""
    return f"{took_ms:.2f}" if took_ms >= 0.01 else f"{took_ms * 1e6:.0f} ns"


def _ratio(row: Row, by_name: Mapping[tuple[str, str], Row]) -> float | None:
    floor = by_name.get((row.floor, row.variant))
    return None if floor is None else row.p50_ms / floor.p50_ms
