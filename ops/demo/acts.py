"""The acts of the demo, in order. Each works the system as a person would and checks what it claims."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from ops.demo import evolutions, proof
from ops.demo.evolutions import Evolution
from ops.demo.proof import MismatchError, Observer, same
from ops.demo.system import System
from ops.demo.table import Story
from ops.servers.celery import CeleryProcess

TOTAL = evolutions.ACCOUNTS * evolutions.START
_TRIES = 5  # a window of a few milliseconds may pass between two looks of the observer


@dataclass(frozen=True, slots=True)
class Seal:
    """What was true at the freeze: the create JSON, rows, trees, commits, and how many transfers were done."""

    document: dict[str, Any]
    digests: dict[str, str]
    trees: dict[str, str]
    transfers: int


def begin(story: Story, system: System) -> None:
    """Fill the servers, make the vault, and let two workers and a beat run."""
    system.make_body()
    system.start_beat()
    system.make_soul()
    story.note(f"PostgreSQL on 127.0.0.1:{system.postgres.port}, Valkey on 127.0.0.1:{system.broker.port}")
    story.note(f"{evolutions.ACCOUNTS} accounts with {evolutions.START} coins each; no task may change their sum")
    system.lych("init")
    system.start("one", "two")
    system.wait_for_load()
    story.note("two workers and a beat run, and money moves")


def seal_under_load(story: Story, system: System) -> Seal:
    """Have a worker create a checkpoint while tasks run, and look at the soul during the freeze."""
    with story.phase("Seal a checkpoint under load: celery call checkpoint.create"):
        trees = proof.trees(system.root)
        for _ in range(_TRIES):
            with Observer(system.environment["LYCH_DATABASE_URL"]) as observer:
                made = system.ask("checkpoint.create")
                system.wait_for_load(10)
            seen = observer.within(made["frozen_at"], made["thawed_at"])
            if seen:
                break
            story.note("the window passed between two looks; once more")
        else:
            raise MismatchError(f"the observer saw none of {_TRIES} freezes")
        same("state", made["state"], "sealed")
        same("driver", made["driver"], system.driver)
        for one in seen:
            same("the soul within the freeze", one.digests, seen[0].digests)
        hold_ms = made["window"]["hold_ms"]
        story.proven(f"{made['id']}: sealed by driver {made['driver']}, workers stood still for {hold_ms:.0f} ms")
        story.proven(f"the soul did not change in {len(seen)} looks during the freeze")
        same("commits", made["repos"], {name: system.git(name, "rev-parse", "HEAD") for name in trees})
        for name, tree in trees.items():
            same(f"tree of {name}", system.git(name, "rev-parse", f"{made['repos'][name]}^{{tree}}"), tree)
        story.proven("the sealed commits hold exactly the files on disk")
        same("what verify finds", system.ask("checkpoint.verify", made["id"])["state"], "whole")
        story.proven("verify finds every byte as it was sealed")
        done = sum(one["ended"] <= made["frozen_at"] for one in system.stamps())
    return Seal(made, seen[0].digests, trees, done)


def evolve(story: Story, system: System) -> None:
    """Let the daemon rewrite itself, restart it, and let it work on."""
    with story.phase("Evolve: new code in two repositories, a migration, a checkpoint before it"):
        _evolve(story, system, evolutions.first(), "three", "four")


def wreck(story: Story, system: System, seal: Seal) -> None:
    """Roll the code back, but not the data, and try to start a worker on it."""
    with story.phase("Wreck it: roll back the code alone"):
        for name, commit in seal.document["repos"].items():
            system.git(name, "reset", "-q", "--hard", commit)
        refused = system.start_unready("five")
        same("exit code of a worker on half a federation", refused.wait_exit(), os.EX_CONFIG)
        story.quote(_gate_message(refused.text))
        story.proven("the gate refused the worker with exit code 78")


def restore(story: Story, system: System, seal: Seal) -> float:
    """Bring both back while the evolved workers still run, compare with the freeze, and return when that was."""
    identity = seal.document["id"]
    with story.phase("Restore body and soul: lych-checkpoint restore --yes"):
        system.lych("restore", identity, "--yes")
        with psycopg.connect(system.environment["LYCH_DATABASE_URL"]) as connection:
            same("the soul", proof.digests(connection), seal.digests)
        story.proven("every row, the sequence and the columns equal those at the freeze")
        same("the body", proof.trees(system.root), seal.trees)
        for name in seal.trees:
            same(f"status of {name}", system.git(name, "status", "--porcelain"), "")
        story.proven("every tree hash equals that at the freeze, and every repository is clean")
    restored_at = time.time()
    with story.phase("Boot again"):
        old, system.workers = system.workers, {}
        system.start("six", "seven")
        system.wait_for_load()
        story.proven("two new workers passed the gate and money moves")
        for name in ("three", "four"):
            same(f"exit code of the old worker {name}", old[name].wait_exit(), os.EX_TEMPFAIL)
        story.proven("the old workers, which held the lost future's code, left by themselves with exit code 75")
        _check_total(story, system)
    return restored_at


def go_another_way(story: Story, system: System) -> None:
    """Evolve again, differently."""
    with story.phase("Evolve another way, from the restored state"):
        _evolve(story, system, evolutions.second(), "eight", "nine")


def look_back(story: Story, system: System, seal: Seal, restored_at: float) -> list[dict[str, Any]]:
    """Check over the whole run that freezes were quiet and that nothing was lost or done twice."""
    with story.phase("Look back over everything that ran"):
        leaving = system.dismiss()
        listed: list[dict[str, Any]] = system.lych("list")["checkpoints"]
        _see_off(story, system, leaving)
        stamps = system.stamps()
        freezes = sorted(listed, key=lambda one: float(one["frozen_at"]))
        for one in freezes:
            overlapping = proof.ran_during(stamps, one["frozen_at"], one["thawed_at"])
            same(f"tasks that ran during the freeze of {one['id']}", overlapping, [])
        story.proven(f"of {len(stamps)} transfers none ran in any of {len(freezes)} freezes")
        with psycopg.connect(system.environment["LYCH_DATABASE_URL"]) as connection:
            rows = connection.execute("select count(*) from transfers").fetchone()
        after = sum(one["began"] > restored_at for one in stamps)
        same("transfers in the soul", rows, (seal.transfers + after,))
        story.proven("each transfer since then is in the soul exactly once")
        _check_total(story, system)
    return freezes


def gone(story: Story, system: System) -> None:
    """Check that nothing is left."""
    same("the demo's directory", system.home.exists(), False)
    same("the server", (system.postgres.pid, system.broker.pid), (None, None))
    same("processes of the demo", system.left_behind(), [])
    story.proven("no process and no file is left behind")


def _evolve(story: Story, system: System, evolution: Evolution, *heirs: str) -> None:
    before = system.ask("evolve", evolution.files, evolution.statements)
    story.proven(f"{before} was sealed before the evolution's first line ran")
    leaving = system.dismiss()
    system.start(*heirs)
    _see_off(story, system, leaving)
    system.wait_for_load()
    with psycopg.connect(system.environment["LYCH_DATABASE_URL"]) as connection:
        found = connection.execute(
            f"select count(*) from transfers where version = '{evolution.mark}' and {evolution.column} is not null"
            .encode()
        ).fetchone()
    if not found or not found[0]:
        raise MismatchError(f"no row carries {evolution.mark!r}")
    story.proven(f"the new code passed the gate; rows now say {evolution.mark!r} and fill {evolution.column!r}")
    _check_total(story, system)


def _see_off(story: Story, system: System, leaving: dict[str, CeleryProcess]) -> None:
    for name in system.see_off(leaving):
        story.note(f"worker {name} hung in Celery's own warm shutdown and was killed")


def _check_total(story: Story, system: System) -> None:
    with psycopg.connect(system.environment["LYCH_DATABASE_URL"]) as connection:
        same("the sum", connection.execute("select sum(balance) from accounts").fetchone(), (TOTAL,))
    story.proven(f"the sum is still {TOTAL}")


def _gate_message(log: str) -> str:
    lines = log.strip().splitlines()
    marked = [line for line in lines if "CRITICAL" in line]
    return "\n".join(marked or lines[-6:])
