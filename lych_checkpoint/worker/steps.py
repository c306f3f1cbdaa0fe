"""The steps that `install` adds to Celery's worker: gate and member; `consuming` has the one of its consumer.

Order at boot: gate (before any pool exists), register and read the lease, fork the pool, listen, subscribe, read the
lease again, consume. The second reading closes the gap in which a freeze was rung before this worker could hear it.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from celery import bootsteps, signals
from celery.concurrency import solo
from celery.exceptions import WorkerShutdown
from celery.worker import state as worker_state

from lych_checkpoint.eras import Present
from lych_checkpoint.errors import CheckpointError, at_the_gate
from lych_checkpoint.lease import roster
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.process import Identity
from lych_checkpoint.vault.quarantine import Quarantine
from lych_checkpoint.worker import alive, children, consuming
from lych_checkpoint.worker.admission import Admission
from lych_checkpoint.worker.barrier import Barrier
from lych_checkpoint.worker.flag import FROZEN
from lych_checkpoint.worker.listener import listening
from lych_checkpoint.worker.member import Member

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What the steps need of the plugin; it hangs on the app as ``app.lych``.

    ``boot`` is the id of this start of the worker; pool children inherit it.
    """

    boot: str

    def pass_gate(self) -> tuple[int, Present]:
        """Return the generation seen, and which messages may run; or raise what forbids the start."""

    def admission(self) -> tuple[str, Quarantine] | None:
        """Return the header that tells messages apart, and where those go that may not run; None if all may."""

    def open_store(self) -> Store:
        """Return a client for this federation's Redis."""

    def loaded(self) -> str:
        """Return the signature of the body this process imported."""

    def on_disk(self) -> str:
        """Return the signature of the body that is on disk now."""

    def answer_restore(self, store: Store) -> None:
        """Tell a restore on another host whether this one can follow."""

    def check_generation(self, era: int) -> None:
        """Raise what forbids to go on when a restore has ended that era, or when that cannot be known."""

    def doubt_of(self, era: int) -> str:
        """Return what `check_generation` raises, in words; empty if it passes."""

    def is_exempt(self, task: str) -> bool:
        """Return whether that task may start during a freeze."""


def refuse(error: CheckpointError) -> WorkerShutdown:
    """Say why the worker does not start, and return the exception that ends it with the right exit code.

    ``WorkerTerminate`` would end it with 0.
    """
    error = at_the_gate(error)
    logger.critical("Refusing to start: %s", error)
    if not logging.getLogger().isEnabledFor(logging.CRITICAL):
        sys.stderr.write(f"{error}\n")
    return WorkerShutdown(error.exit_code)


class Gate(bootsteps.StartStopStep):
    """Refuses the start before the pool exists."""

    def __init__(self, worker: Any, **_: Any) -> None:
        worker.lych_generation, worker.lych_present = 0, Present(era=0)

    def create(self, worker: Any) -> Any:
        """Run the gate; nothing is left behind when it refuses."""
        host: Host = worker.app.lych
        try:
            worker.lych_generation, worker.lych_present = host.pass_gate()
        except CheckpointError as error:
            raise refuse(error) from error


class Membership(bootsteps.StartStopStep):
    """Registers the worker and puts the barrier before its pool."""

    requires = ("celery.worker.components:Pool", Gate)

    def __init__(self, worker: Any, **_: Any) -> None:
        worker.lych_member = None
        self._running = ExitStack()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def create(self, worker: Any) -> Any:
        """Register, close the barrier if a freeze is in force, wrap what requests pass."""
        host: Host = worker.app.lych
        boot = uuid.uuid4().hex
        try:
            path, _ = alive.hold(boot)
        except CheckpointError as error:
            raise refuse(error) from error
        try:
            store = host.open_store()
            worker.lych_member = member = Member(
                store, self._entry(worker, host, boot, str(path)), disk=host.on_disk, leave=self._leaver(worker),
                doubt=lambda: host.doubt_of(worker.lych_present.era), answer=host.answer_restore,
            )
            member.barrier = self._barrier(worker, host, member)
            self._admit(worker, host.admission(), member)
            member.look()
            host.check_generation(worker.lych_present.era)
        except CheckpointError as error:
            path.unlink(missing_ok=True)
            raise refuse(error) from error
        host.boot = boot
        self._store = store
        signals.worker_shutdown.connect(self._on_shutdown(worker, path), sender=worker, weak=False)
        return None

    def start(self, worker: Any) -> None:
        """Listen; the pool's children are forked by now."""
        self._running.enter_context(listening(self._store, worker.lych_member))

    def stop(self, worker: Any) -> None:
        """Before the pool waits for its children: a restore waits for the workers that leave for it."""
        member: Member = worker.lych_member
        if member.left and member.barrier is not None:
            tokens = member.barrier.tokens
            children.dismiss(worker.pool, idle=lambda: not tokens.running())

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Let other threads wake the main loop; called again after each reconnect."""
        hub.add_reader(self._wake_read, self._on_wake, worker)

    def _entry(self, worker: Any, host: Host, boot: str, alive_file: str) -> roster.Entry:
        return roster.Entry(
            name=worker.hostname, boot=boot, pool=worker.pool_cls.__module__.rpartition(".")[2],
            identity=Identity.mine(), alive_file=alive_file, loaded=host.loaded(), disk="",
            generation=worker.lych_generation, era=worker.lych_present.era,
        )

    def _barrier(self, worker: Any, host: Host, member: Member) -> Barrier:
        behind_semaphore = worker.process_task == worker._process_task_sem  # noqa: SLF001 - the hook, see barrier
        barrier = Barrier(
            worker._process_task, exempt=host.is_exempt,  # noqa: SLF001
            places=None if behind_semaphore else lambda: int(worker.pool.limit or 1),
            may_start=member.may_start, wake=self._waker(worker), drained=member.say, flag=FROZEN.share(),
            blocks=not worker.use_eventloop,
        )
        worker._process_task = barrier.admit  # noqa: SLF001
        if not behind_semaphore:
            worker.process_task = barrier.admit
        if type(worker.pool) is not solo.TaskPool:  # its bodies begin and end within the start of their request
            tokens, pool = barrier.tokens, worker.pool
            pool.apply_async = tokens.wrap(pool.apply_async, inside=not pool.uses_semaphore)
        return barrier

    def _admit(self, worker: Any, how: tuple[str, Quarantine] | None, member: Member) -> None:
        """Put admission before the barrier; before the first restore there is nothing to ask."""
        if how is not None and worker.lych_present.era:
            header, quarantine = how
            worker.process_task = Admission(worker.process_task, present=worker.lych_present, header=header,
                                            quarantine=quarantine, leave=member.go).admit

    def _waker(self, worker: Any) -> Callable[[], None]:
        """Return how any thread gets `let_go` run where Celery starts tasks.

        With an event loop that is its own thread, woken by a byte in a pipe. Green pools have no loop and one thread;
        there a timer's greenlet does it, for the greenlet of a task that just ended still owns its place in the pool
        and would wait for itself.
        """
        def write() -> None:
            with suppress(BlockingIOError):  # the pipe is full of wakes already
                os.write(self._wake_write, b"!")

        def spawn() -> None:
            worker.timer.call_after(0, consuming.settle, (worker,))

        return write if worker.use_eventloop else spawn

    def _leaver(self, worker: Any) -> Callable[[int, str], None]:
        """Return how the listener ends the worker: its main loop may sleep for a second and must look first."""
        wake = self._waker(worker)

        def leave(exit_code: int, why: str) -> None:
            _leave(exit_code, why)
            wake()

        return leave

    def _on_wake(self, worker: Any) -> None:
        try:
            if not os.read(self._wake_read, 4096):
                return
        except BlockingIOError:
            return
        consuming.settle(worker)

    def _on_shutdown(self, worker: Any, alive_file: Any) -> Any:
        def ended(**_: Any) -> None:
            self._running.close()
            if worker.lych_member.left:  # for good: an app's tests may start and stop many workers in one process
                gc.freeze()  # else the interpreter's end looks for garbage in all that is loaded: a third of a second
            worker.lych_member.end()
            alive_file.unlink(missing_ok=True)
            self._store.close()

        return ended


def _leave(exit_code: int, why: str) -> None:
    logger.critical("Leaving with %d: %s", exit_code, why, extra={"event": "worker.leaving"})
    worker_state.should_stop = exit_code  # type: ignore[assignment]  # an int is what maybe_shutdown raises with
