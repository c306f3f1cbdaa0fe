"""What a fresh clone needs: a lock that names no index, and no committed file that does."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
# In pieces, so that this file passes its own test.
HOSTS = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb" + ".debian.org",
         "proxy." + "golang.org", "crates" + ".io")


def committed() -> list[Path]:
    done = subprocess.run(
        ["git", "-c", f"safe.directory={CHECKOUT}", "-C", CHECKOUT, "ls-files", "-z"],
        check=True, capture_output=True, text=True,
    )
    return [CHECKOUT / name for name in done.stdout.split("\0") if name]


def test_no_committed_file_names_a_package_index() -> None:
    files = committed()
    assert CHECKOUT / "requirements.lock" in files
    for path in files:
        text = path.read_text(errors="replace").lower()
        assert [host for host in HOSTS if host in text] == [], path


def test_the_lock_holds_all_direct_dependencies_by_hash() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    lock = (CHECKOUT / "requirements.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    names = {re.split(r"[\[<>=!~ ;]", want)[0].lower().replace("_", "-") for want in wanted}
    assert names - {"lych-checkpoint"} <= locked
    for entry in re.split(r"\n(?=[a-z])", lock)[1:]:
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_celery_finds_the_command_and_the_script() -> None:
    from importlib.metadata import entry_points

    assert [point.value for point in entry_points(group="celery.commands", name="checkpoint")]
    assert [point.value for point in entry_points(group="console_scripts", name="lych-checkpoint")]
