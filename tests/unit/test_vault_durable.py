"""What makes a checkpoint or a journal survive a power cut is an order: bytes, names, rename, the rename's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lych_checkpoint import journal
from lych_checkpoint.vault import Vault, write_atomic
from tests.fixtures.sealed import make_checkpoint

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Every fsync, rename and unlink that really happens, in order, by path."""
    seen: Events = []
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def watched(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def watch(source: object, *rest: object, **more: object) -> None:
            call(source, *rest, **more)
            seen.append((name, os.fspath(rest[0] if rest else source)))  # type: ignore[call-overload]
        return watch

    monkeypatch.setattr(os, "fsync", watched_fsync)
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    return seen


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


def test_the_lineage_is_flushed_and_so_is_its_first_name(vault: Vault, events: Events) -> None:
    vault.append_lineage("init", 1, "a")
    assert events == [("fsync", str(vault.root / "lineage")), ("fsync", str(vault.root))]
    events.clear()
    vault.append_lineage("imprint", 2, "b")
    assert events == [("fsync", str(vault.root / "lineage"))]
