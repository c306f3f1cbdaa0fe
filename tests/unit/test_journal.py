"""The journal: one open restore at most, and never in two minds about how far it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lych_checkpoint import journal
from lych_checkpoint.errors import Damage, LockHeld, Refused
from lych_checkpoint.vault import Vault
from tests.fixtures.children import in_child


def begin(vault: Vault) -> journal.Journal:
    return journal.begin(vault, checkpoint="c-1", ticket="t-1", generation=4, epoch=9)


def test_a_restores_whole_life(vault: Vault) -> None:
    assert journal.read(vault) is None
    assert begin(vault) == journal.read(vault)
    journal.advance(vault, "staging", staged={"copy": "x", "whole": True, "bytes": 3})
    journal.advance(vault, "closing")
    journal.advance(vault, "closing", displaced="the lock's text\n")
    for phase in ("switching", "switching", "done"):
        entry = journal.advance(vault, phase)
        assert journal.read(vault) == entry
    assert (entry.phase, entry.staged, entry.displaced) == (
        "done", {"copy": "x", "whole": True, "bytes": 3}, "the lock's text\n")
    journal.close(vault, "restored")
    assert journal.read(vault) is None
    kept = json.loads((vault.root / "notes" / "restore-t-1.json").read_text())
    assert (kept["outcome"], kept["phase"], kept["version"]) == ("restored", "done", 1)
    journal.close(vault, "again")
    assert json.loads((vault.root / "notes" / "restore-t-1.json").read_text()) == kept


def test_a_restore_never_goes_back(vault: Vault) -> None:
    begin(vault)
    for phase in ("closing", "switching"):
        journal.advance(vault, phase)
    for phase in ("staging", "closing"):
        with pytest.raises(Refused) as caught:
            journal.advance(vault, phase)
        assert caught.value.code == "journal-order"
    entry = journal.read(vault)
    assert entry is not None
    assert entry.phase == "switching"


@pytest.mark.parametrize("before", ["staging", "closing", "switching"])
def test_an_undone_restore_never_goes_on(vault: Vault, before: str) -> None:
    begin(vault)
    for phase in ("closing", "switching") if before == "switching" else (before,):
        journal.advance(vault, phase)
    assert journal.advance(vault, "undone", why="no").why == "no"
    for phase in ("staging", "closing", "switching", "done"):
        with pytest.raises(Refused) as caught:
            journal.advance(vault, phase)
        assert caught.value.code == "journal-order"


def test_a_restore_that_is_done_is_never_undone(vault: Vault) -> None:
    begin(vault)
    for phase in ("closing", "switching", "done"):
        journal.advance(vault, phase)
    with pytest.raises(Refused, match="done cannot be undone"):
        journal.advance(vault, "undone")


def test_nothing_open_cannot_advance(vault: Vault) -> None:
    with pytest.raises(Refused) as caught:
        journal.advance(vault, "closing")
    assert caught.value.code == "no-journal"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version":1,"phase":"staging"}', "cut"])
def test_a_broken_journal_is_damage_not_no_journal(vault: Vault, text: str) -> None:
    begin(vault)
    path = vault.root / "journal.json"
    path.write_text(text if text != "cut" else path.read_text()[:-5])
    with pytest.raises(Damage, match=r"journal\.json"):
        journal.read(vault)


def test_an_unknown_phase_is_damage(vault: Vault) -> None:
    begin(vault)
    path = vault.root / "journal.json"
    path.write_text(path.read_text().replace("staging", "stagging"))
    with pytest.raises(Damage, match="stagging"):
        journal.read(vault)


def test_a_full_disk_leaves_the_phase_that_was(vault: Vault) -> None:
    begin(vault)
    error = in_child(lambda: journal.advance(vault, "closing", displaced="x" * 9000), largest_file_bytes=5000)
    assert isinstance(error, Refused)
    entry = journal.read(vault)
    assert entry is not None
    assert entry.phase == "staging"


_HOLDER = """
import subprocess, sys, time
from pathlib import Path
from lych_checkpoint import journal
from lych_checkpoint.vault import Vault
with journal.held(Vault(Path(sys.argv[1]))):
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_the_lock_tells_a_live_owner_from_a_dead_one(vault: Vault) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, vault.root], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    orphan = int(holder.stdout.readline())
    try:
        with pytest.raises(LockHeld, match=f"pid {holder.pid} ") as caught, journal.held(vault):
            pass
        assert caught.value.exit_code == 5
        holder.kill()
        holder.wait()
        os.kill(orphan, 0)
        with journal.held(vault):  # a program that the dead owner started does not hold it
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(orphan, signal.SIGKILL)


def test_the_lock_is_free_again_after_an_error(vault: Vault) -> None:
    with pytest.raises(ZeroDivisionError), journal.held(vault):
        raise ZeroDivisionError
    with journal.held(vault), pytest.raises(LockHeld), journal.held(vault):
        pass


def test_files_of_a_killed_write_do_not_count(vault: Vault, tmp_path: Path) -> None:
    begin(vault)
    (vault.root / ".journal.json.deadbeef").write_text("{")
    entry = journal.read(vault)
    assert entry is not None
    assert entry.checkpoint == "c-1"
