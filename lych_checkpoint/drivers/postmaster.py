"""A PostgreSQL server as processes on a data directory: stopped, proven dead, started, or run in private."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lych_checkpoint.database.address import on_socket
from lych_checkpoint.errors import CheckpointError, Refused, SettingError
from lych_checkpoint.process import Owner, run

_STOP_S = 120
_START_S = 3600
_DIE_S = 30.0
_PORT = 5432
#: How a start names the lock file beside a socket; its second line is a PGDATA.
_SOCKET_LOCK = re.compile(r"/[^\n\"]*\.s\.PGSQL\.\d+\.lock")
#: What becomes a server, and what its command line then says beside PGDATA: pg_ctl, its shell, the server.
_STARTERS = {b"pg_ctl": b"", b"sh": b"\0-c\0exec ", b"postgres": b""}
#: The line of postmaster.pid, from 0, that says `ready`.
_STATUS_LINE = 7
#: A private server must not listen, archive, replicate, wait for standbys, run other people's background jobs, or
#: follow absolute paths of the live configuration. It needs little memory beside the live one.
_PRIVATE = {
    "listen_addresses": "", "port": str(_PORT), "unix_socket_permissions": "0700", "unix_socket_group": "",
    "external_pid_file": "", "ssl": "off", "archive_mode": "off", "synchronous_standby_names": "",
    "shared_preload_libraries": "", "session_preload_libraries": "", "max_logical_replication_workers": "0",
    "autovacuum": "off", "shared_buffers": "128MB", "huge_pages": "off", "logging_collector": "off",
    "log_destination": "stderr", "lc_messages": "C", "fsync": "on", "restart_after_crash": "off",
}
#: What a program says that found no memory, disk, descriptor or process; or the kernel took it away for its memory.
_STARVED = (*(os.strerror(number) for number in (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE,
                                                 errno.EAGAIN)), "out of memory", "was terminated by signal 9")


def starved(text: str) -> bool:
    """Whether that is what a program says which the machine gave too little."""
    return any(words in text for words in _STARVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postmaster:
    """How the server on ``pgdata`` is run: by whom, with which pg_ctl, through which control.

    ``config_file`` is set where the configuration lies outside PGDATA.
    """

    pgdata: Path
    owner: Owner
    pg_ctl: Path
    control: str = "pg_ctl"
    config_file: str = ""

    def users(self) -> list[int]:
        """Return the processes that work in PGDATA. Every process of a server has it as working directory.

        Raises:
            Refused: a process of PGDATA's owner named postgres cannot be looked at (code ``server-unseen``).
        """
        top = self.pgdata.stat()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                place = (entry / "cwd").stat()
            except PermissionError as error:
                if self._is_ours_by_name(entry):
                    raise Refused(f"cannot see whether process {entry.name} uses the data", str(self.pgdata),
                                  "run as the data's owner", "server-unseen") from error
                continue
            except OSError:
                continue
            if (place.st_dev, place.st_ino) == (top.st_dev, top.st_ino):
                found.append(int(entry.name))
        return found

    def starting(self) -> list[int]:
        """Return the processes that are about to start a server on PGDATA, or wait for it.

        Whoever was killed in a start leaves them, and they do not work in PGDATA yet: they would begin in whatever
        bears its name a moment later. Worse: one that entered a directory just before an exchange writes pg_control,
        by name, into the other. Amid an execve(2) a command line is empty: that may be one.
        """
        named = re.compile(re.escape(os.fsencode(self.pgdata)) + rb'["\0\s]')
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    said = (entry / "cmdline").read_bytes()
                    starts = _STARTERS.get(said.partition(b"\0")[0].rpartition(b"/")[2])
                    if not said and (entry / "exe").readlink():  # a zombie has none: OSError
                        starts = _STARTERS.get((entry / "comm").read_bytes().strip())
                    if starts is not None and (not said or (starts in said and named.search(said))):
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """Stop the server, prove that no process of it is left, and sweep what its private ones left.

        Raises:
            Refused: it does not stop (code ``server-runs``).
        """
        began_s, patience_s, told = time.monotonic(), _DIE_S, False
        while left := [*self.users(), *self.starting()]:
            past_s = time.monotonic() - began_s
            if past_s > patience_s:
                raise Refused(f"process {left[0]} still works in the data directory, or starts a server there",
                              str(self.pgdata), "stop the server", "server-runs")
            if self.users() and self.control == "pg_ctl":  # again: who only begins has no lock file yet
                self._signal(signal.SIGINT if past_s < _STOP_S else signal.SIGQUIT)
                patience_s = _STOP_S + _DIE_S
            elif self.users() and not told:
                run(self._command("stop"), timeout_s=_STOP_S)
                patience_s, told = time.monotonic() - began_s + _DIE_S, True
            time.sleep(0.01)
        for home in Path("/tmp").glob(f"{self._home}*"):  # noqa: S108 - of private servers that were killed
            found = home.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid in (0, self.owner.uid):
                shutil.rmtree(home, ignore_errors=True)

    def start(self, log: Path) -> None:
        """Start the server if it does not run, and return when it takes connections.

        Raises:
            Refused: it does not start; the log's end is quoted.
        """
        self._wait_for_who_was_killed()
        if self._runs():
            self._wait_until_ready()
            return
        if self.control != "pg_ctl":
            run(self._command("start"), timeout_s=_START_S)
            self._wait_until_ready()
            return
        options = {"config_file": self.config_file, "data_directory": str(self.pgdata)} if self.config_file else {}
        self._start(log, options)

    @contextmanager
    def private(self, url: str, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
        """Run the server so that nobody else can reach it; yield the address of ``url``'s database on it.

        Args:
            url: of the live server.
            settings: of the server, such as where its recovery ends; in this order.
        """
        self.stop()
        home = Path(tempfile.mkdtemp(prefix=self._home, dir="/tmp"))
        try:
            (home / "hba").write_text("local all all trust\n")
            (home / "ident").touch()
            for path in (home, home / "hba", home / "ident"):
                os.chown(path, self.owner.uid, self.owner.gid)
            options = {
                **_PRIVATE, "data_directory": str(self.pgdata), "unix_socket_directories": str(home),
                "hba_file": str(home / "hba"), "ident_file": str(home / "ident"), **settings,
            }
            if self.config_file:
                options["config_file"] = self.config_file
            self._start(home / "log", options)
            try:
                yield on_socket(url, str(home), _PORT)
            except BaseException as error:
                try:
                    self.stop()
                except CheckpointError as second:
                    error.add_note(f"the private server could not be stopped: {second}")
                raise
            self.stop()
        finally:
            shutil.rmtree(home, ignore_errors=True)

    @property
    def _home(self) -> str:
        """How the directories of private servers on this PGDATA begin: whoever comes after a kill finds them."""
        return f"lych-{hashlib.sha256(os.fsencode(self.pgdata)).hexdigest()[:12]}-"

    def _start(self, log: Path, options: dict[str, str]) -> None:
        begin = log.stat().st_size if log.exists() else 0
        try:
            self._try_to_start(log, options, begin)
        except Refused:
            if not self._unlock(_since(log, begin)):
                raise
            self._try_to_start(log, options, begin)

    def _unlock(self, said: str) -> bool:
        """Take away the lock files that a start ran into, if they are of a server on this PGDATA: it is dead.

        The server itself goes by the process alone: one that nobody reaped, as in a container without an init, or
        another of the same user under its number, would keep it out for ever.
        """
        paths = [Path(found) for found in _SOCKET_LOCK.findall(said)]
        taken = False
        for path in [*paths, self.pgdata / "postmaster.pid"] if "postmaster.pid" in said else paths:
            with suppress(OSError, IndexError):
                lock = path.read_text().splitlines()
                if Path(lock[1]).resolve() == self.pgdata and not {*self.users(), *self.starting()}:
                    path.unlink()
                    taken = True
        return taken

    def _try_to_start(self, log: Path, options: dict[str, str], begin: int) -> None:
        text = shlex.join([part for name, value in options.items() for part in ("-c", f"{name}={value}")])
        try:
            # It must not go on when this process is killed: whoever comes next has to see what was begun.
            run([self.pg_ctl, "start", "-w", "-D", self.pgdata, "-t", str(_START_S), "-l", str(log),
                 *(["-o", text] if text else [])],
                owner=self.owner, cwd=Path("/"), timeout_s=_START_S + 60, dies_with_us=True)
            self._wait_until_ready()  # to pg_ctl a server that recovers without letting anybody in has started
        except Refused as error:
            if self._runs():  # a pg_ctl that outlived its killed parent was faster
                self._wait_until_ready()
                return
            text = _since(log, begin)
            lines = text.splitlines()
            lines = ([line for line in lines if "FATAL" in line] or lines)[-3:]
            raise Refused(f"the server does not start: {' | '.join(lines) or error.what}", str(self.pgdata),
                          f"read {log}", "server-starved" if starved(text) else "server-does-not-start") from error

    def _signal(self, number: int) -> None:
        """Tell the postmaster. Not through pg_ctl: one that outlives us would stop what runs here later."""
        status = self._status()
        if status and status[0].isdigit() and (pid := int(status[0])) in self.users():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _runs(self) -> bool:
        status = self._status()
        return bool(status) and status[0].isdigit() and int(status[0]) in self.users()

    def _status(self) -> list[str]:
        try:
            return (self.pgdata / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _wait_for_who_was_killed(self) -> None:
        deadline = time.monotonic() + _START_S
        while self._runs() and (self._says() == "stopping" or {*self.starting()} - {*self.users()}):
            if time.monotonic() > deadline:
                raise Refused("the server was told to stop and does not end", str(self.pgdata), "stop the server",
                              "server-runs")
            time.sleep(0.01)

    def _says(self) -> str:
        status = self._status()
        return status[_STATUS_LINE].strip() if len(status) > _STATUS_LINE else ""

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while self._says() != "ready":
            if time.monotonic() > deadline or not (self._runs() or self.control != "pg_ctl"):
                raise Refused("the server did not become ready", str(self.pgdata), "look into its log",
                              "server-does-not-start")
            time.sleep(0.01)

    def _command(self, act: str) -> list[str]:
        if self.control.startswith("systemd:"):
            return ["systemctl", act, self.control.removeprefix("systemd:")]
        try:
            argv = json.loads(self.control)[act]
        except (ValueError, KeyError, TypeError) as error:
            raise SettingError(f"does not say how to {act} the server", "LYCH_POSTGRES_CONTROL",
                               'set it to pg_ctl, systemd:UNIT or {"start": [...], "stop": [...]}') from error
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise SettingError(f"{act} is no list of words", "LYCH_POSTGRES_CONTROL", "write it as a JSON list")
        return argv

    def _is_ours_by_name(self, entry: Path) -> bool:
        with suppress(OSError):
            return entry.stat().st_uid == self.owner.uid and (entry / "comm").read_text().strip() == "postgres"
        return False


def _since(log: Path, begin: int) -> str:
    """Return what was written into a log behind its first ``begin`` bytes."""
    return log.read_bytes()[begin:].decode(errors="replace") if log.exists() else ""
