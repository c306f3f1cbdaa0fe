"""What makes a checkpoint or a journal survive a power cut is an order: bytes, names, rename, the rename's name."""

from __future__ import annotations

import os
from pathlib import Path

from lych_checkpoint import journal
from lych_checkpoint.vault import Vault, write_atomic
from tests.fixtures.durable import Events
from tests.fixtures.sealed import make_checkpoint


def test_publish_flushes_everything_then_renames_then_flushes_the_name(vault: Vault, events: Events) -> None:
    one = make_checkpoint(vault)
    folder, partial = str(vault.path(one)), f"{vault.path(one)}.partial"
    renamed = events.index(("rename", folder))
    flushed = {path for act, path in events[:renamed] if act == "fsync"}
    for parent, _, files in os.walk(folder):
        for path in [parent, *(f"{parent}/{name}" for name in files)]:
            assert path.replace(folder, partial) in flushed
    assert events[renamed + 1:] == [("fsync", str(vault.root / "checkpoints"))]
    sealed = events.index(("replace", f"{partial}/seal"))
    assert events.index(("replace", f"{partial}/manifest.json")) < sealed < renamed


def test_an_atomic_write_flushes_its_bytes_then_renames_then_flushes_the_name(vault: Vault, events: Events) -> None:
    path = vault.root / "notes" / "note"
    write_atomic(path, b"text")
    (first, aside), *rest = events
    assert (first, Path(aside).parent) == ("fsync", path.parent)
    assert aside != str(path)
    assert rest == [("replace", str(path)), ("fsync", str(path.parent))]


def test_a_journal_is_kept_before_it_goes(vault: Vault, events: Events) -> None:
    journal.begin(vault, checkpoint="c-1", ticket="t-1", generation=2, epoch=1)
    events.clear()
    journal.close(vault, "restored")
    notes = str(vault.root / "notes")
    assert events[1:] == [
        ("replace", f"{notes}/restore-t-1.json"), ("fsync", notes),
        ("unlink", str(vault.root / "journal.json")), ("fsync", str(vault.root)),
    ]


def test_a_journals_step_is_durable_before_it_is_taken(vault: Vault, events: Events) -> None:
    journal.begin(vault, checkpoint="c-1", ticket="t-1", generation=2, epoch=1)
    for phase in ("closing", "switching", "done"):
        events.clear()
        journal.advance(vault, phase)
        assert [act for act, _ in events] == ["fsync", "replace", "fsync"]
        assert events[1:] == [("replace", str(vault.root / "journal.json")), ("fsync", str(vault.root))]


def test_the_lineage_is_flushed_and_so_is_its_first_name(vault: Vault, events: Events) -> None:
    vault.append_lineage("init", 1, "a")
    assert events == [("fsync", str(vault.root / "lineage")), ("fsync", str(vault.root))]
    events.clear()
    vault.append_lineage("imprint", 2, "b")
    assert events == [("fsync", str(vault.root / "lineage"))]
