"""A dirty body, captured where the user asks for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fixtures.federation import git
from tests.fixtures.workers import Lych
from tests.integration.test_create_and_restore import body_digest, change_everything, fill, soul_digest


def bytes_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file outside the git directories."""
    found = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".lych-stage")]
        for name in names:
            path = Path(parent, name)
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    found.pop("lychd.lock", None)
    return found


@pytest.mark.parametrize("shadow_survives", [True, False])
def test_captured_dirty_tree_comes_back_bit_for_bit(
    shadow_survives: bool, lych: Lych, federation_root: Path, database: str, tmp_path: Path
) -> None:
    fill(database)
    assert lych("init").code == 0
    core = federation_root / "core"
    (core / "README").write_bytes(b"edited\r\n\x00\xff")
    (core / "run.sh").write_text("#!/bin/sh\n")
    (core / "run.sh").chmod(0o755)
    (core / "link").symlink_to("README")
    head, status = git(core, "rev-parse", "HEAD"), git(core, "status", "--porcelain")
    assert lych("create", "--here").code == 1
    sealed = lych("create", "--here", "--json", LYCH_DIRTY="capture")
    assert sealed.code == 0, sealed.out
    assert (git(core, "rev-parse", "HEAD"), git(core, "status", "--porcelain")) == (head, status)
    before = (bytes_of(federation_root), soul_digest(database))
    git(core, "add", "-A")
    change_everything(federation_root, database)
    (core / "link").unlink()
    git(core, "commit", "-qam", "gone")
    if not shadow_survives:
        shutil.rmtree(tmp_path / "vault" / "shadow")
    restored = lych("restore", "latest", "--yes", "--json", LYCH_DIRTY="capture")
    assert restored.code == 0, restored.out
    assert (bytes_of(federation_root), soul_digest(database)) == before
    assert lych("gate", "--json").json["verdict"] == "aligned"  # the gate looks at what is checked out
    assert body_digest(federation_root)
