"""What a person does with the messages that workers put aside: look, release, drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lych_checkpoint import eras, queues
from lych_checkpoint.eras import Stamp
from lych_checkpoint.errors import CheckpointError, UnknownName
from lych_checkpoint.federation import Federation
from lych_checkpoint.vault.quarantine import Message

#: Shortest part of an id that names a message.
_PREFIX_LENGTH = 4


def listed(federation: Federation) -> list[dict[str, Any]]:
    """Return what is known of each message but its body.

    ``id``, ``task``, ``arguments`` (as Celery shows them), ``queue``, ``exchange``, ``routing_key``, ``retries``,
    ``bytes``, ``at``, ``why``, and ``present``: whether it belongs to the present again, as after an undo.

    Raises:
        Damage: a file there is no message.
        Away: the vault cannot be reached.
    """
    federation.vault.open()
    again = _present(federation)
    return [
        {"id": one.id, "task": one.task, "queue": one.queue, "exchange": one.exchange,
         "routing_key": one.routing_key, "retries": one.retries, "bytes": len(one.body), "at": one.at, "why": one.why,
         "arguments": [one.headers.get("argsrepr"), one.headers.get("kwargsrepr")], "present": again(one)}
        for one in federation.vault.quarantine.messages()
    ]


def release(
    federation: Federation, ids: Sequence[str], *, present: bool, app: Any, stamp: Callable[[], tuple[str, str]],
) -> list[str]:
    """Publish messages again where they were published first, as of now, and forget each once the broker has it.

    A process killed between the two leaves a message that is published and still listed: released again, it runs
    twice.

    Args:
        federation: whose quarantine.
        ids: which, each an id or the beginning of one; all if empty.
        present: only those that belong to the present again.
        app: Celery's.
        stamp: gives header and text of a stamp of now.

    Raises:
        UnknownName: no message, or several, have an id that begins so. Nothing was published.
        LockHeld: somebody else releases or drops.
        Away, Refused: the others stay; a note says how many had been released before.
    """
    done: list[str] = []
    with _chosen(federation, ids, present=present) as messages, queues.sending(app) as send, _telling(done):
        for message in messages:
            header, text = stamp()
            send(message, {**message.headers, header: text})
            federation.vault.quarantine.remove(message)
            done.append(message.id)
    return done


def drop(federation: Federation, ids: Sequence[str]) -> list[str]:
    """Forget messages for good; all if ``ids`` is empty.

    Raises:
        UnknownName, LockHeld: as `release`.
        Away, Refused: the vault cannot be written.
    """
    done: list[str] = []
    with _chosen(federation, ids, present=False) as messages, _telling(done):
        for message in messages:
            federation.vault.quarantine.remove(message)
            done.append(message.id)
    return done


@contextmanager
def _chosen(federation: Federation, ids: Sequence[str], *, present: bool) -> Iterator[list[Message]]:
    """Hold the quarantine and give what is named."""
    federation.vault.open()
    again = _present(federation)
    with federation.vault.quarantine.held():
        messages = federation.vault.quarantine.messages()
        known = {one.id for one in messages}
        wanted = {_named(name, known) for name in ids} if ids else known
        yield [one for one in messages if one.id in wanted and (again(one) or not present)]


def _named(name: str, known: set[str]) -> str:
    if name in known:
        return name
    fitting = sorted(one for one in known if one.startswith(name)) if len(name) >= _PREFIX_LENGTH else []
    if len(fitting) != 1:
        raise UnknownName(f"{len(fitting)} messages have an id that begins so", name, "lych-checkpoint queue list",
                          "ambiguous-name" if fitting else "")
    return fitting[0]


def _present(federation: Federation) -> Callable[[Message], bool]:
    here, header = eras.present(federation.vault.lineage(), 0), eras.header(federation.uuid)
    return lambda message: not here.refusal(Stamp.loads(message.headers.get(header)))


@contextmanager
def _telling(done: list[str]) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        if done:
            error.add_note(f"{len(done)} were done before that; the others stay")
            error.facts = {**error.facts, "done": done}
        raise
