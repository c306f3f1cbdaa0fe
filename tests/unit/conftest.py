"""What the tests of the vault stand on; none of it needs a server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lych_checkpoint import seal
from lych_checkpoint.vault import Vault
from tests.fixtures.lacking import lacks, need_root
from tests.fixtures.sealed import key_of, make_checkpoint


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """A fresh vault with its key."""
    made = Vault(tmp_path / "a vault")
    made.init()
    seal.make_key(key_of(made))
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    need_root()
    point = tmp_path / "small"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", point], check=False, capture_output=True,
                          text=True)
    if done.returncode:
        lacks(done.stderr.strip())
    yield point
    subprocess.run(["umount", point], check=True)


@pytest.fixture
def filled(vault: Vault) -> Vault:
    """A vault with two checkpoints and a safety copy."""
    make_checkpoint(vault, label="before")
    make_checkpoint(vault)
    make_checkpoint(vault, safety=True)
    return vault
