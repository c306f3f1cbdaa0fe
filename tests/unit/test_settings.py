"""Settings: environment over app over file over defaults; what is wrong is refused by the field's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lych_checkpoint.errors import SettingError
from lych_checkpoint.settings import Settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but the test's own."""
    for name in [name for name in os.environ if name.startswith("LYCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LYCH_FEDERATION", "crypt")


def test_sources_outrank_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Settings.load().lease_s == 10
    (tmp_path / "lych.toml").write_text('lease_s = 20\ndrain_timeout_s = 21\nextensions = ["a", "!b"]\n')
    assert Settings.load().lease_s == 20
    conf = {"lych_lease_s": 30, "broker_url": "amqp://", "task_routes": {}}
    assert Settings.load(conf).lease_s == 30
    monkeypatch.setenv("LYCH_LEASE_S", "40")
    settings = Settings.load(conf)
    assert (settings.lease_s, settings.drain_timeout_s, settings.extensions) == (40, 21, ("a", "!b"))
    other = tmp_path / "other.toml"
    other.write_text("drain_timeout_s = 5")
    monkeypatch.setenv("LYCH_CONFIG", str(other))
    assert Settings.load().drain_timeout_s == 5


@pytest.mark.parametrize(("name", "value"), [
    ("LYCH_LEASE_S", "soon"), ("LYCH_LEASE_S", "0"), ("LYCH_LEASE_S", "nan"), ("LYCH_DRIVER", "tape"),
    ("LYCH_DIRTY", "maybe"), ("LYCH_FEDERATION", "a b"), ("LYCH_FEDERATION", "../x"), ("LYCH_KEEP", "often"),
    ("LYCH_KEEP", '{"sometimes": 1}'), ("LYCH_EXTENSIONS", "extensions/*"), ("LYCH_EXTENSIONS", "{}"),
    ("LYCH_ACK_TIMEOUT_S", "-1"), ("LYCH_REBUILD", "make"),
])
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError) as caught:
        Settings.load()
    assert caught.value.where == name
    assert caught.value.exit_code == 2


def test_unknown_names_are_refused_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="leese"):
        Settings.load({"lych_leese_s": 1})
    (tmp_path / "lych.toml").write_text("leese_s = 1")
    with pytest.raises(SettingError, match="leese"):
        Settings.load()
    (tmp_path / "lych.toml").unlink()
    monkeypatch.setenv("LYCH_LEESE_S", "1")
    with pytest.raises(SettingError, match="LYCH_LEESE_S"):
        Settings.load()


def test_reserved_names_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LYCH_DEMO_DIR", "LYCH_TEST_X", "LYCH_BENCH_Y"):
        monkeypatch.setenv(name, "1")
    assert Settings.load().federation == "crypt"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lych.toml").write_text("= nothing")
    with pytest.raises(SettingError, match=r"lych\.toml"):
        Settings.load()


def test_the_federation_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LYCH_FEDERATION")
    with pytest.raises(SettingError) as caught:
        Settings.load()
    assert caught.value.where == "LYCH_FEDERATION"


@pytest.mark.parametrize(("broker", "expected"), [
    ("redis://h/1", "redis://h/1"), ("rediss://h/1", "rediss://h/1"), ("amqp://h", ""), (None, ""),
])
def test_a_redis_broker_is_the_redis(broker: str | None, expected: str) -> None:
    assert Settings.load({"broker_url": broker}).redis_url == expected


def test_what_is_needed_and_not_set_is_named() -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load().need("database_url")
    assert caught.value.where == "LYCH_DATABASE_URL"


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf: dict[str, Any] = {
        "lych_keep": {"hourly": 3}, "lych_extensions": ["a b", "!c"], "lych_vault": str(tmp_path / "a vault"),
        "lych_rebuild": ["make", "it now"], "lych_lease_s": 2.5, "lych_schedule": "*/5 * * * *",
        "lych_postgres_control": '{"start": ["x"], "stop": ["y"]}', "lych_root": "below",
        "broker_url": "redis://localhost/3",
    }
    settings = Settings.load(conf)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert Settings.load() == settings
    assert settings.root == tmp_path / "below"
    assert settings.key_path == tmp_path / "a vault" / "keys" / "ed25519.pem"
