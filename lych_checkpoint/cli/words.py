"""What a person types after a verb, and what two verbs tell in the same words."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from lych_checkpoint.cli.answer import harmless, table

# `click.ParamType` takes a type argument only since 8.4: without it every release will do.
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`90s`, `10m`, `2h`: seconds as a float."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if not found or float(found[1]) <= 0:
            self.fail(f"{value!r} is no duration such as 90s, 10m or 2h", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Label(click.ParamType):  # type: ignore[type-arg]
    """One plain word that is no other way to name a checkpoint."""

    name = "word"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,63}", value) or re.fullmatch(r"latest(~\d+)?", value):
            self.fail(f"{value!r} is no plain word (letters, digits, . _ -, and not `latest`)", param, ctx)
        return value


class Tag(click.ParamType):  # type: ignore[type-arg]
    """`key=value`."""

    name = "key=value"

    def convert(self, value: str | tuple[str, str], param: click.Parameter | None,
                ctx: click.Context | None) -> tuple[str, str]:
        """Return key and value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", key):
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key, text


def agree(question: str, *, yes: bool) -> None:
    """Go on only with a person's yes; without a terminal nobody is asked.

    Raises:
        click.UsageError: there is no terminal and no ``--yes``.
        click.Abort: the person said no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: say --yes")
    click.confirm(question, abort=True, err=True)


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return the plan of a restore, line by line."""
    generation, safety, expected, rows = plan["generation"], plan["safety"], plan["expected"], plan["rows"]
    repos = [(path, (one["from"] or "-")[:12], (one["to"] or "-")[:12], _count(one["goes"]), _count(one["comes"]))
             for path, one in plan["repos"].items()]
    written = [(name, *(str(count) for count in counts.values())) for name, counts in (rows or {}).items()]
    return [
        f"{plan['checkpoint']} of {plan['created_at']}, {_age(plan['age_s'])} ago, {plan['driver']}",
        f"generation {generation['from']} becomes {generation['to']}",
        *table(repos, ("repository", "from", "to", "commits go", "come")),
        *[f"uncommitted work goes too: {loose['count']} in {harmless(path)}, such as {harmless(loose['named'][0])}"
          for path, one in plan["repos"].items() if (loose := one["uncommitted"]) and loose["count"]],
        *[f"the whole cluster goes back, so these databases too: {harmless(', '.join(plan['neighbours']))}"]
        * bool(plan["neighbours"]),
        *["how many rows changed since is not known"] * (rows is None),
        *["no row changed since, by the server's statistics"] * (rows == {}),
        *(table(written, ("changes that go", "inserted", "updated", "deleted")) if written else []),
        *[f"no room to keep what goes (up to {safety['needed_bytes'] >> 20} MiB): needs --no-safety"]
        * (not safety["fits"]),
        *_waiting(plan["queues"]),
        f"it took {expected['total_s']:g} s, of which workers stood still for {expected['still_s']:g} s (median of "
        f"{expected['runs']})" if expected else "how long it takes is not known: none ran here with this driver",
    ]


def _waiting(queues: dict[str, Any] | None) -> list[str]:
    if queues is None:
        return ["how many messages wait is not known: `celery -A APP checkpoint restore --dry-run` asks the broker"]
    counts = [f"{count} in {harmless(name)}" for name, count in queues["waiting"].items() if count]
    fate = "are put aside" if queues["policy"] == "quarantine" else "run all the same (LYCH_QUEUE_POLICY)"
    return [f"messages wait: {', '.join(counts)}; those from after the checkpoint {fate}" if counts else
            "no message waits in the queues"]


def _count(commits: dict[str, Any] | None) -> str:
    return "?" if commits is None else str(commits["count"])


def _age(age_s: float) -> str:
    for unit, per_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if age_s >= 2 * per_s:
            return f"{age_s / per_s:.0f}{unit}"
    return f"{age_s:.0f}s"
