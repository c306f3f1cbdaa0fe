"""What the soul computes without a server: names, addresses, controls."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lych_checkpoint.database import host_and_name
from lych_checkpoint.database.address import is_local, name_of, on_socket, parts, with_name, without_password
from lych_checkpoint.database.catalogue import beside
from lych_checkpoint.drivers.postmaster import Postmaster
from lych_checkpoint.errors import Refused, SettingError
from lych_checkpoint.process import Owner, spawned

URL = "postgresql://mina:s3cret@db.example.org:5433/soul?sslmode=require&connect_timeout=3"


@given(st.text(st.characters(blacklist_characters="\0", codec="utf-8"), min_size=1, max_size=80))
def test_a_name_aside_fits_and_tells_tickets_apart(name: str) -> None:
    first, second = beside(name, "lych", "20261123t142129z-ab12"), beside(name, "lych_old", "20261123t142129z-ab12")
    assert len(first.encode()) <= 63
    assert len(second.encode()) <= 63
    assert first != second
    assert first != beside(name, "lych", "20261123t142129z-ab13")
    assert first.endswith("__lych_20261123t142129z-ab12")


def test_a_ticket_that_leaves_no_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no room"):
        beside("soul", "lych", "x" * 60)


def test_addresses() -> None:
    assert host_and_name(URL) == "db.example.org/soul"
    assert name_of("postgresql://mina@h") == "mina"
    assert parts(with_name(URL, "a b")) == {**parts(URL), "dbname": "a b"}
    shown, secret = without_password(URL, "us")
    assert "s3cret" not in shown
    assert secret == {"PGPASSWORD": "s3cret"}
    assert without_password("postgresql://h/d", "us")[1] == {}
    assert parts(on_socket(URL, "/tmp/x", 5)) == {"user": "mina", "dbname": "soul", "host": "/tmp/x", "port": "5",
                                                "connect_timeout": "3"}


@pytest.mark.parametrize(("url", "local"), [
    ("postgresql:///soul", True), ("postgresql://localhost/s", True), ("postgresql://127.0.0.1:5/s", True),
    ("host=/run/postgresql", True), ("postgresql://[::1]/s", True), (URL, False), ("host=a hostaddr=127.0.0.1", True),
])
def test_local_servers_are_told_from_others(url: str, local: bool) -> None:
    assert is_local(url) is local


@pytest.mark.parametrize("control", ["nonsense", "[]", '{"stop": []}', '{"stop": "sv x stop"}', '{"start": ["x"]}'])
def test_a_control_that_says_nothing_useful_is_a_bad_setting(tmp_path: Path, control: str) -> None:
    server = Postmaster(pgdata=tmp_path, owner=Owner.of(tmp_path), pg_ctl=Path("pg_ctl"), control=control)
    with pytest.raises(SettingError) as caught:
        server._command("stop")
    assert caught.value.where == "LYCH_POSTGRES_CONTROL"


def test_controls_become_argv(tmp_path: Path) -> None:
    def command(control: str) -> list[str]:
        server = Postmaster(pgdata=tmp_path, owner=Owner.of(tmp_path), pg_ctl=Path("x"), control=control)
        return server._command("start")

    assert command("systemd:postgresql@15-main") == ["systemctl", "start", "postgresql@15-main"]
    assert command('{"start": ["sv", "up", "pg"], "stop": ["sv", "down", "pg"]}') == ["sv", "up", "pg"]


def test_a_program_beside_us_ends_with_its_block_and_its_complaint_is_told() -> None:
    with spawned(["sleep", "60"]) as running:
        assert not running.ended
    assert running.ended
    with spawned(["sh", "-c", "echo no >&2; exit 3"]) as failed, pytest.raises(Refused, match="failed with 3: no"):
        failed.wait(10)
    with spawned(["sleep", "60"]) as slow, pytest.raises(Refused, match="did not end"):
        slow.wait(0.01)
    with pytest.raises(Refused, match="was not found"), spawned(["/nowhere/program"]):
        pass
