"""The verbs that change nothing: list, show, diff, verify, gate, doctor."""

from __future__ import annotations

from typing import Any

import click

from lych_checkpoint.cli import answer
from lych_checkpoint.cli.words import plan_lines
from lych_checkpoint.vault import Vault


@click.command("list")
def list_command() -> None:
    """List the sealed checkpoints, oldest first."""
    vault = Vault(answer.settings().vault_path)
    rehearsals = vault.rehearsals()
    checkpoints = [{**one, "rehearsed": _rehearsed(rehearsals.get(name))} for name, one in vault.rows().items()]
    rows = [
        (one["id"], one["label"] or "-", "safety" if one["safety"] else one["driver"], len(one["repos"]),
         one["bytes"], _when(one["rehearsed"]), (one["reason"] or "-").partition("\n")[0])
        for one in checkpoints
    ]
    answer.say({"checkpoints": checkpoints},
               answer.table(rows, ("id", "label", "driver", "repositories", "bytes", "rehearsed", "reason")))


def _rehearsed(said: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return when and how it ended, and which checks it could not run: ``ok`` says nothing of those."""
    return None if said is None else {
        "at": said["at"], "ok": said["ok"],
        "left_out": [check for check in ("amcheck",) if str(said[check]).startswith("left out")]}


def _when(rehearsed: dict[str, Any] | None) -> str:
    if rehearsed is None:
        return "-"
    lacking = "".join(f" without {check}" for check in rehearsed["left_out"])
    return f"{rehearsed['at'][:16]}{'' if rehearsed['ok'] else ' failed'}{lacking}"


@click.command("show")
@click.argument("name", default="latest")
def show_command(*, name: str) -> None:
    """Show one checkpoint."""
    document = Vault(answer.settings().vault_path).resolve(name).as_json()
    answer.say(document, _lines(document))


@click.command("diff")
@click.argument("old", default="latest")
@click.argument("new", default="now")
def diff_command(*, old: str, new: str) -> None:
    """Say what changed from checkpoint OLD to checkpoint NEW, or to `now`, and what a restore would take and give."""
    from lych_checkpoint import comparison

    document = comparison.diff(answer.federation(), old, new)
    answer.say(document, _difference(document))


@click.command("verify")
@click.argument("name", default="latest")
@click.option("--deep", is_flag=True, help="Also digest what is sealed by identity, and check the pages.")
def verify_command(*, name: str, deep: bool) -> None:
    """Compare every byte of a checkpoint with what was sealed."""
    from lych_checkpoint import inspection

    document = inspection.verify(answer.federation(), name, deep=deep)
    broken = "; the one sealed before it was pruned or changed" if document["previous"] == "gone" else ""
    answer.say(document, f"{document['id']} is whole ({document['depth']}){broken}")


@click.command("gate")
@click.option("--adopt", metavar="REASON", help="Take the body on disk as the right one; the reason is kept.")
@click.option("--retry", is_flag=True, help="Let a rebirth that stopped on this host try again.")
def gate_command(*, adopt: str | None, retry: bool) -> None:
    """Say whether a worker may start on this body and soul."""
    from lych_checkpoint import gate

    federation = answer.federation()
    if retry:
        from lych_checkpoint import rebirth

        rebirth.retry(federation)
    report = gate.adopt(federation, adopt) if adopt else gate.check(federation)
    if report.dirty is None:
        report = gate.with_dirt(federation, report)
    rows = [(path, one.verdict, one.disk[:12], one.witness[:12]) for path, one in report.repos.items()]
    answer.say(report.as_json(), [report.verdict, *answer.table(rows, ("repository", "verdict", "disk", "witness")),
                                  *[f"uncommitted work in {answer.harmless(path)}" for path in report.dirty or ()]])


@click.command("doctor")
@click.pass_context
def doctor_command(ctx: click.Context) -> None:
    """Look at everything a checkpoint stands on."""
    from lych_checkpoint import doctor

    findings = doctor.doctor(answer.federation(), answer.app())
    lines = answer.table([(one.state, one.check, one.what) for one in findings], ("state", "check", "what"))
    lines += [f"mend {one.check} with: {one.mend}" for one in findings if one.mend and one.state != doctor.OK]
    code = doctor.exit_code(findings)
    answer.say({"healthy": code == 0, "checks": [one.as_json() for one in findings]}, lines)
    ctx.exit(code)


def _difference(document: dict[str, Any]) -> list[str]:
    """Return the table of repositories, and below it what each of them has to say."""
    repos = document["repos"]
    counts = [[str(one[side]["count"]) if one[side] else "?" for side in ("comes", "goes")] for one in repos.values()]
    lines = [f"from {document['old']} to {document['new']}", *answer.table(
        [(path, one["relation"], one["old"][:12] or "-", one["new"][:12] or "-", *count)
         for (path, one), count in zip(repos.items(), counts, strict=True)],
        ("repository", "relation", "old", "new", "comes", "goes"))]
    for path, one in repos.items():
        said = [f"captured uncommitted files: {' and '.join(which)}" for which in [
            [name for name, captured in zip(("old", "new"), one["captured"], strict=True) if captured]] if which]
        said += [one["why"]] if one["why"] else []
        said += [f"lockfile {name} {how}" for name, how in one["lockfiles"].items()]
        for sign, side in (("+", one["comes"]), ("-", one["goes"])):
            named = side["named"] if side else ()
            said += [f"{sign} {commit[:12]} {subject}" for commit, subject in named]
            said += [f"{sign} and {side['count'] - len(named)} more"] if side and side["count"] > len(named) else []
        lines += [answer.harmless(path) + ":", *(f"  {answer.harmless(line)}" for line in said)] if said else []
    lines += _dirt(document["dirty"])
    lines += [answer.harmless(f"{name}: {one['old'] or '-'} becomes {one['new'] or '-'}")
              for name, one in document["environment"].items()]
    return lines + (["a restore:", *plan_lines(document["restore"])] if document["restore"] else [])


def _dirt(dirty: dict[str, dict[str, Any] | None]) -> list[str]:
    """Return what is not committed now, repository by repository; one line where there is nothing."""
    lines = []
    for path, one in dirty.items():
        if one is None:
            lines.append(answer.harmless(f"now {path}: nobody can know whether it is dirty"))
        elif one["count"]:
            more = f" and {one['count'] - len(one['named'])} more" if one["count"] > len(one["named"]) else ""
            lines.append(answer.harmless(f"now {path} is dirty: {', '.join(one['named'])}{more}"))
    return lines or ["now nothing is dirty"] * bool(dirty)


def _lines(document: dict[str, Any]) -> list[str]:
    """Return one aligned line for each fact, and one for each entry of those that have several."""
    flat: list[tuple[str, object]] = []
    for name, value in document.items():
        entries = value.items() if isinstance(value, dict) else [("", one) for one in value] \
            if isinstance(value, list) else [("", value)]
        flat += [(f"{name} {key}".rstrip(), one) for key, one in entries if one not in (None, "")]
    width = max(len(name) for name, _ in flat)
    return [f"{name.ljust(width)}  {value}" for name, value in flat]
