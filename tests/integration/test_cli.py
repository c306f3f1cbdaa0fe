"""The command: one JSON document on stdout whatever happens, one exit code for each kind of error, no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from lych_checkpoint.cli import answer, celery_command, words
from lych_checkpoint.errors import CheckpointError
from lych_checkpoint.vault import Vault
from tests.architecture import rooms
from tests.fixtures.programs import environment, run, silent_server
from tests.fixtures.sealed import make_checkpoint
from tests.fixtures.workers import Lych

VERBS = {
    "init", "create", "list", "show", "diff", "verify", "rehearse", "restore", "recover", "gate", "status", "freeze",
    "thaw", "doctor", "queue",
}
LATER = {"prune", "pin", "report"}
#: Verbs that need another word.
WHOLE = {"queue": ("queue", "list")}
CREATE_FIELDS = {
    "id", "label", "state", "signature", "driver", "created_at", "workers", "repos", "bytes", "coalesced",
    "frozen_at", "thawed_at", "window",
}


def in_python(code: str, **more: str) -> Any:
    """Run a few lines of Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(**more), capture_output=True, text=True, check=False)


def inside(*argv: str) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        celery_command.main(list(argv), prog_name="lych-checkpoint")
    return int(caught.value.code or 0)


def ask(vault: Vault, *argv: str, **more: str) -> Any:
    return run(*argv, LYCH_FEDERATION="crypt", LYCH_VAULT=str(vault.root), **more)


def test_the_verbs_are_those_promised() -> None:
    assert set(celery_command.list_commands(click.Context(celery_command))) == VERBS
    text = run("--help").stdout
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", text, re.MULTILINE), verb


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str) -> None:
    command = celery_command.get_command(click.Context(celery_command), verb)
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize("argv", [
    *[(verb,) for verb in sorted(LATER)], (), ("lits",), ("--wrong", "list"), ("list", "--wrong"), ("list", "more"),
    ("create", "--label", "latest"), ("create", "--label", "a b"), ("create", "--tag", "novalue"),
    ("freeze", "--for", "10", "--reason", "x"), ("freeze", "--for", "10m"),
    ("freeze", "--for", "0s", "--reason", "x"),
    ("restore",), ("restore", "latest", "--undo"),
    ("queue",), ("queue", "drop"), ("queue", "drop", "x", "--all"), ("queue", "release"),
    ("queue", "release", "--all"),
])
def test_a_misused_command_line_answers_in_json(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--json", *argv), (*argv, "--json")):
        assert inside(*arguments) == 2
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert set(document) == {"schema", "error"}
        assert document["error"]["code"] == "usage"
        assert set(document["error"]) == {"code", "what", "where", "mend"}
        assert said.err == ""
    assert inside(*argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "mend it with" in said.err


@pytest.mark.parametrize("argv", [("prune",), ("list", "--wrong"), ()])
def test_a_misused_program_has_no_traceback(argv: tuple[str, ...]) -> None:
    done = run(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lych-checkpoint: command line: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", sorted(VERBS - {"restore", "freeze"}))
def test_every_verb_without_settings_says_which(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("LYCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert inside(*WHOLE.get(verb, (verb,)), "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"] == {
        "code": "bad-setting", "what": "is required and not set", "where": "LYCH_FEDERATION",
        "mend": "set LYCH_FEDERATION"}


@pytest.mark.parametrize("verb", sorted(VERBS - {"restore", "freeze", "doctor"}))
def test_every_verb_with_everything_away_is_75(verb: str, tmp_path: Path) -> None:
    nobody = "127.0.0.1:1"
    more = {"LYCH_FEDERATION": "crypt", "LYCH_VAULT": str(tmp_path / "none"), "LYCH_REDIS_URL": f"redis://{nobody}/0",
            "LYCH_DATABASE_URL": f"postgresql://{nobody}/soul"}
    done = run(*WHOLE.get(verb, (verb,)), "--json", **more)
    assert done.returncode == 75, done.stdout
    assert json.loads(done.stdout)["error"]["code"]
    assert "Traceback" not in done.stderr


def test_list_has_the_promised_fields(filled: Vault) -> None:
    done = ask(filled, "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert [one["id"] for one in document["checkpoints"]] == filled.ids()
    for one in document["checkpoints"]:
        assert set(one) >= CREATE_FIELDS
        assert one["state"] == "sealed"
    assert json.loads(ask(filled, "--json", "list").stdout) == document
    lines = ask(filled, "list").stdout.splitlines()
    assert lines[0].split() == ["id", "label", "driver", "repositories", "bytes", "rehearsed", "reason"]
    assert [line.split()[0] for line in lines[1:]] == filled.ids()


def test_an_empty_list_is_a_list(vault: Vault) -> None:
    assert json.loads(ask(vault, "list", "--json").stdout) == {"schema": 1, "checkpoints": []}


def test_show_takes_every_kind_of_name(filled: Vault) -> None:
    first, second, _safety = filled.ids()
    for name, expected in (("latest", second), ("latest~1", first), ("before", first), (first, first)):
        document = json.loads(ask(filled, "show", name, "--json").stdout)
        assert document["id"] == expected
        assert set(document) >= CREATE_FIELDS | {"schema"}
    text = ask(filled, "show", "before").stdout
    assert re.search(rf"^id +{first}$", text, re.MULTILINE)
    assert re.search(r"^repos core +a{40}$", text, re.MULTILINE)


@pytest.mark.parametrize(("name", "code"), [("nothing", "unknown-name"), ("202", "unknown-name"),
                                            ("latest~9", "unknown-name")])
def test_an_unknown_name_is_2(filled: Vault, name: str, code: str) -> None:
    done = ask(filled, "show", name, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == code


def test_an_ambiguous_name_is_2(filled: Vault) -> None:
    done = ask(filled, "show", filled.ids()[0][:8], "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "ambiguous-name")


@pytest.mark.parametrize("name", ["manifest.json", "body/core.bundle", "seal"])
def test_damage_is_3_and_named(filled: Vault, name: str) -> None:
    newest = filled.resolve("latest").id
    path = filled.path(newest) / name
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    done = ask(filled, "verify", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert name in error["what"] + error["where"]
    assert newest in error["where"]


def test_evidence_that_its_driver_cannot_read_is_damage(filled: Vault, database: str) -> None:
    done = ask(filled, "verify", "--json", LYCH_DATABASE_URL=database)
    assert done.returncode == 3
    assert "evidence of the driver dump lacks 'form'" in json.loads(done.stdout)["error"]["what"]


def test_a_terminal_that_cannot_show_a_letter_still_gets_the_answer(filled: Vault) -> None:
    done = ask(filled, "list", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\u201ereason" in done.stdout


def test_a_reader_who_leaves_is_no_error(vault: Vault) -> None:
    make_checkpoint(vault, reason="x" * 200_000)
    with subprocess.Popen(
        [sys.executable, "-m", "lych_checkpoint", "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(LYCH_FEDERATION="crypt", LYCH_VAULT=str(vault.root)),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_nobody_is_asked_without_a_terminal(filled: Vault) -> None:
    with pytest.raises(click.UsageError, match="--yes"):
        words.agree("Restore?", yes=False)
    words.agree("Restore?", yes=True)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5m", 90), ("1d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert words.Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "0s", "1w", "1 m", "1m ", "nan", "infs", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.UsageError):
        words.Duration().convert(text, None, None)


@pytest.mark.parametrize("text", ["latest", "latest~1", "a b", "1a", "", "-a", "a/b", "x" * 65])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(click.UsageError):
        words.Label().convert(text, None, None)


def test_every_error_leaves_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in [CheckpointError, *CheckpointError.__subclasses__()]:
        def fail(kind: type[CheckpointError] = kind) -> None:
            raise kind("what", "where", "mend", "code")

        assert answer.ending(fail, as_json=True) == kind.exit_code
        assert json.loads(capsys.readouterr().out)["error"]["what"] == "what"


def test_what_nobody_foresaw_is_1_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by \udcff")

    assert answer.ending(fail, as_json=True) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["code"] == "internal"
    assert said.err == ""


def test_debug_shows_the_traceback_on_stderr(tmp_path: Path) -> None:
    code = ("from lych_checkpoint.cli import answer\n"
            "answer.log_to_stderr(debug=True)\n"
            "raise SystemExit(answer.ending(lambda: 1 / 0, as_json=True))\n")
    done = in_python(code)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "internal"
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


def test_an_interrupt_is_130(vault: Vault) -> None:
    """Ctrl-C comes while a server does not answer."""
    with silent_server() as (server, url):
        process = subprocess.Popen(  # a shell's background jobs ignore it, and so would what they start
            ["env", "--default-signal=INT", sys.executable, "-m", "lych_checkpoint", "init", "--json"], text=True,
            env=environment(LYCH_FEDERATION="crypt", LYCH_VAULT=str(vault.root), LYCH_DATABASE_URL=url),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        connection, _ = server.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Traceback" not in err


def test_the_entry_point_is_light() -> None:
    """Every `celery` command of any app imports it."""
    heavy = ["celery", "redis", "psycopg", "git", "pydantic", "cryptography"]
    code = f"import sys, lych_checkpoint.cli; print([name for name in {heavy} if name in sys.modules])"
    assert in_python(code).stdout.strip() == "[]"


def test_list_needs_no_server_and_loads_no_client(filled: Vault) -> None:
    code = ("import sys\nfrom lych_checkpoint.cli import main\n"
            "try:\n    main(['list'])\nexcept SystemExit:\n    pass\n"
            "print([name for name in ('celery', 'redis', 'psycopg', 'git') if name in sys.modules])")
    done = in_python(code, LYCH_FEDERATION="crypt", LYCH_VAULT=str(filled.root))
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_commands_that_errors_advise_exist() -> None:
    """A mend that names a verb or option we do not have sends its reader nowhere."""
    advised = set()
    for path in rooms.files():
        advised |= set(re.findall(r"lych-checkpoint ([a-z]+)((?: --[a-z-]+)*)", path.read_text()))
    advised -= {one for one in advised if one[0] in ("dump", "maintenance")}  # names of connections, not commands
    assert len(advised) > 5
    for verb, options in advised:
        command = celery_command.get_command(click.Context(celery_command), verb)
        assert command is not None, verb
        known = {name for parameter in command.params for name in parameter.opts}
        assert set(options.split()) <= known | {"--help"}, (verb, options)


def test_doctor_says_for_each_driver_that_does_not_fit_what_mends_it(lych: Lych) -> None:
    assert lych("init").code == 0
    checks = lych("doctor", "--json").json["checks"]
    drivers = {one["what"].partition(":")[0]: one for one in checks if one["check"] == "drivers"}
    unfit = [drivers[name] for name in ("btrfs", "reflink", "pitr", "dump") if drivers[name]["state"] == "warning"]
    assert "is on no Btrfs" in unfit[0]["what"]
    assert [one["what"] for one in unfit if not one["mend"]] == []
