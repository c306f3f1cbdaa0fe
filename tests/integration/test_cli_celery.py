"""`celery -A app checkpoint VERB` is the same command, with the settings of the app."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lych_checkpoint.vault import Vault
from tests.fixtures.programs import environment, run
from tests.fixtures.sealed import make_checkpoint

APP = '''
from celery import Celery
import lych_checkpoint
app = Celery("daemon", broker="redis://127.0.0.1:1/0")
app.conf.lych_federation = "crypt"
app.conf.lych_vault = {vault!r}
app.conf.lych_database_url = "postgresql://127.0.0.1:1/soul"
{last}
'''


def write_app(vault: Vault, directory: Path, *, install: bool = True) -> None:
    (directory / "daemon.py").write_text(
        APP.format(vault=str(vault.root), last="lych_checkpoint.install(app)" if install else ""))


def in_celery(vault: Vault, directory: Path, *argv: str, install: bool = True, **more: str) -> Any:
    write_app(vault, directory, install=install)
    return run("-A", "daemon", "checkpoint", *argv, cwd=directory, program=("celery",), **more)


def test_celerys_form_reads_the_apps_settings(filled: Vault, tmp_path: Path) -> None:
    done = in_celery(filled, tmp_path, "list", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["id"] for one in json.loads(done.stdout)["checkpoints"]] == filled.ids()


@pytest.mark.parametrize(("argv", "code", "slug"), [
    (("show", "nothing"), 2, "unknown-name"), (("--wrong",), 2, "usage"), (("prune",), 2, "usage"), ((), 2, "usage"),
    (("list", "--wrong"), 2, "usage"), (("init",), 75, None), (("recover",), 75, None),
    (("restore", "latest", "--yes"), 3, None),
])
def test_celerys_form_ends_with_the_same_codes(
    filled: Vault, tmp_path: Path, argv: tuple[str, ...], code: int, slug: str | None
) -> None:
    if argv[0:1] == ("restore",):
        (filled.path(filled.resolve("latest").id) / "body" / "core.bundle").write_bytes(b"changed")
    done = in_celery(filled, tmp_path, *argv, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert slug is None or error["code"] == slug
    assert "Traceback" not in done.stderr


def test_celerys_restore_leaves_the_body_first(vault: Vault, tmp_path: Path) -> None:
    """The program that goes on is not celery, and has the app's settings in its environment."""
    one = make_checkpoint(vault)
    manifest = vault.path(one) / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)  # whoever reads it stands still there
    write_app(vault, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "daemon", "checkpoint", "restore", one, "--json", "--yes"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        writer = wait_for_reader(manifest)
        facts = Path(f"/proc/{process.pid}")
        argv = (facts / "cmdline").read_bytes().decode().split("\0")
        told = (facts / "environ").read_bytes().decode().split("\0")
        os.close(writer)
    finally:
        process.kill()
        process.communicate()
    assert argv[1:] == ["-P", "-m", "lych_checkpoint", "--json", "restore", one, "--yes", ""]
    assert "LYCH_FEDERATION=crypt" in told
    assert "LYCH_DATABASE_URL=postgresql://127.0.0.1:1/soul" in told


def wait_for_reader(pipe: Path) -> int:
    """Return our end of a named pipe once somebody has opened the other; while ours is open they wait."""
    for _ in range(600):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        time.sleep(0.05)
    raise AssertionError("nobody read it")


def test_an_app_without_install_counts_as_none(filled: Vault, tmp_path: Path) -> None:
    done = in_celery(filled, tmp_path, "list", "--json", install=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["where"] == "LYCH_FEDERATION"
    done = in_celery(filled, tmp_path, "list", "--json", install=False, LYCH_FEDERATION="crypt",
                     LYCH_VAULT=str(filled.root))
    assert done.returncode == 0
