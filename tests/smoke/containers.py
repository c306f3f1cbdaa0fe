"""What pytest-celery's nodes stand on: one program each, as a local process or in a Docker container.

Both have the few methods that the nodes call. The Docker image is empty: the host's own system, this Python and this
checkout are bound into it read-only, so nothing is downloaded. A container is another host to the product: its own
host name and process ids.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from ops.servers.child import end, spawn

_READY_WITHIN_S = 60
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ssl", "/etc/passwd", "/etc/group")
_IMAGE = "lych-test-empty"


class Container(Protocol):
    """What a node needs of its container."""

    name: str
    id: str
    ready_prompt: str
    celeryconfig: dict[str, str]

    @property
    def status(self) -> str:
        """`running`, or anything else."""

    def logs(self) -> str:
        """Return all that it said so far."""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send the signal to it, whole."""

    def restart(self, timeout: int = 10) -> None:
        """End it, with SIGKILL after ``timeout`` seconds, and start it again."""

    def reload(self) -> None:
        """Look at it anew."""

    def ready(self) -> bool:
        """Return when it said that it is ready."""

    def teardown(self) -> None:
        """End it and leave nothing."""


def wait_for_prompt(container: Container, times: int) -> bool:
    """Wait until the container said for the nth time that it is ready."""
    end_s = time.monotonic() + _READY_WITHIN_S
    while container.logs().count(container.ready_prompt) < times:
        if container.status != "running" or time.monotonic() > end_s:
            raise TimeoutError(f"{container.name} is {container.status} and not ready:\n{container.logs()[-2000:]}")
        time.sleep(0.05)
    return True


class ProcessContainer:
    """A program in a process group of its own."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], directory: Path,
                 ready_prompt: str, celeryconfig: dict[str, str]) -> None:
        self.name, self.ready_prompt, self.celeryconfig = name, ready_prompt, celeryconfig
        self._argv, self._environment, self._log = argv, environment, directory / f"{name}.log"
        self._starts = 0
        self._child = self._start()

    @property
    def id(self) -> str:
        """The process's id."""
        return str(self._child.pid)

    @property
    def status(self) -> str:
        """`running` or `exited`."""
        return "running" if self._child.poll() is None else "exited"

    def logs(self) -> str:
        """Return its output, of all its starts."""
        return self._log.read_text(errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the whole group and wait if it ends it."""
        number = _number(signal)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)
        if number == _number("SIGKILL"):
            self._child.wait(10)

    def restart(self, timeout: int = 10) -> None:
        """End it and start it again."""
        end(self._child, timeout_s=timeout)
        self._child = self._start()

    def reload(self) -> None:
        """Nothing is kept that could be old."""

    def ready(self) -> bool:
        """Wait for this start's prompt."""
        return wait_for_prompt(self, self._starts)

    def teardown(self) -> None:
        """Kill the group."""
        end(self._child, timeout_s=5)
        self.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        return spawn(list(self._argv), log=self._log, environment=self._environment)


class DockerContainer:
    """The same program in a container of the empty image, on the host's network."""

    def __init__(self, docker: Any, name: str, argv: Sequence[str], environment: Mapping[str, str],
                 directory: Path, ready_prompt: str, celeryconfig: dict[str, str]) -> None:
        self.name, self.ready_prompt, self.celeryconfig = name, ready_prompt, celeryconfig
        self._starts = 1
        binds = {path: {"bind": path, "mode": "ro"} for path in (*_SYSTEM, *_ours()) if Path(path).exists()}
        # The test's own directory last: it lies below none of the others and must be writable.
        binds[str(directory.parent)] = {"bind": str(directory.parent), "mode": "rw"}
        self._container = docker.containers.run(
            _IMAGE, list(argv), detach=True, network_mode="host", hostname=name, volumes=binds, tmpfs={"/tmp": ""},
            working_dir="/", environment={"PATH": os.environ["PATH"], "HOME": "/tmp", **environment},
        )

    @property
    def id(self) -> str:
        """The container's id."""
        return str(self._container.id)

    @property
    def status(self) -> str:
        """What Docker says."""
        self._container.reload()
        return str(self._container.status)

    def logs(self) -> str:
        """Return its output, of all its starts."""
        return str(self._container.logs().decode(errors="replace"))

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal; SIGKILL ends every process in the container."""
        self._container.kill(signal=signal)
        if _number(signal) == _number("SIGKILL"):
            self._container.wait(timeout=10)

    def restart(self, timeout: int = 10) -> None:
        """End it and start it again."""
        self._starts += 1
        self._container.restart(timeout=timeout)

    def reload(self) -> None:
        """Ask Docker."""
        self._container.reload()

    def ready(self) -> bool:
        """Wait for this start's prompt."""
        return wait_for_prompt(self, self._starts)

    def teardown(self) -> None:
        """Remove the container."""
        self._container.remove(force=True, v=True)


class Ground:
    """Starts containers of one kind and ends them all. A context manager."""

    def __init__(self, directory: Path, docker: Any = None) -> None:
        self._directory = directory
        self._docker = docker
        self._stack = ExitStack()
        if docker is not None:
            _import_empty_image(docker)

    def run(self, name: str, argv: Sequence[str], *, environment: Mapping[str, str], ready_prompt: str,
            celeryconfig: dict[str, str] | None = None) -> Container:
        """Start a program; it may not be ready yet."""
        facts = (name, argv, environment, self._directory, ready_prompt, celeryconfig or {})
        made: Container = ProcessContainer(*facts) if self._docker is None else DockerContainer(self._docker, *facts)
        self._stack.callback(made.teardown)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _ours() -> set[str]:
    """Return where this interpreter, its packages and this checkout lie."""
    checkout = str(Path(__file__).parents[2])
    return {path for path in (checkout, sys.prefix, sys.base_prefix) if not path.startswith(("/usr", checkout + "/"))}


def _import_empty_image(docker: Any) -> None:
    if not docker.images.list(name=_IMAGE):
        empty = io.BytesIO()
        tarfile.open(fileobj=empty, mode="w").close()
        docker.api.import_image_from_data(empty.getvalue(), repository=_IMAGE, tag="latest")


def _number(name: str | int) -> int:
    return int(getattr(signal, name) if isinstance(name, str) else name)
