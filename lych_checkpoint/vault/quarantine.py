"""The quarantine: messages put aside, one file each, until a person releases or drops them."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lych_checkpoint.errors import Damage, LockHeld
from lych_checkpoint.ownership import make_directory
from lych_checkpoint.records import RELEASE, VERSION, digest, load_record, read_record
from lych_checkpoint.vault.files import flush_directory, write_atomic, writing

_LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as the broker gave it; published again with these it is the same.

    ``id`` and ``task`` are Celery's; ``queue`` is the one it was taken from, by the worker's word; ``body`` are its
    bytes; ``retries`` how often the task had been run before. ``why`` and ``at`` (RFC 3339) say how it came here.
    """

    id: str
    task: str
    queue: str
    exchange: str
    routing_key: str
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes
    retries: int
    why: str
    at: str

    @property
    def name(self) -> str:
        """Its file: the same message, delivered twice, has one; another try of the same task another one."""
        return digest(f"{self.id} {self.retries} ".encode() + self.body).partition(":")[2] + ".json"


class Quarantine:
    """The directory; made with the first message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, message: Message) -> None:
        """Keep a message, durably.

        Raises:
            Refused, Away: it could not be kept.
        """
        with writing(self._folder):
            if not self._folder.is_dir():
                make_directory(self._folder, 0o700)
                flush_directory(self._folder.parent)
        record = {"version": VERSION, "release": RELEASE, **asdict(message),
                  "body": base64.b64encode(message.body).decode()}
        # What AMQP has and JSON has not, a date say, is kept as text. In ASCII: a header may hold half a character.
        write_atomic(self._folder / message.name, json.dumps(record, sort_keys=True, default=str).encode())

    def messages(self) -> list[Message]:
        """Return all, in the order in which they were put aside.

        Raises:
            Damage: a file cannot be read as one; the message names it.
            Refused, Away: the directory cannot be read.
        """
        found = []
        for path in self._files():
            with writing(path):
                try:
                    found.append(_loads(path.read_bytes(), str(path)))
                except FileNotFoundError:  # released or dropped meanwhile
                    continue
        return sorted(found, key=lambda one: (one.at, one.name))

    def count(self) -> int:
        """Return how many there are."""
        return len(self._files())

    def remove(self, message: Message) -> None:
        """Forget a message; it is gone when this returns."""
        with writing(self._folder):
            (self._folder / message.name).unlink(missing_ok=True)
            flush_directory(self._folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from releasing or dropping for the body of the `with`.

        Raises:
            LockHeld: somebody does.
        """
        if not self._folder.is_dir():
            yield
            return
        path = self._folder / _LOCK
        if not path.exists():
            write_atomic(path, b"")  # the vault's owner's, whoever makes it
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockHeld("somebody releases or drops messages", str(self._folder), "wait for it") from error
            yield
        finally:
            os.close(descriptor)

    def _files(self) -> list[Path]:
        with writing(self._folder):
            try:
                names = os.listdir(self._folder)
            except FileNotFoundError:
                return []
        return [self._folder / name for name in names if name.endswith(".json") and not name.startswith(".")]


def _loads(data: bytes, where: str) -> Message:
    try:
        record = load_record(data, where)
        plain = {name: value for name, value in record.items() if name not in ("version", "release")}
        read_record(Message, plain, where)
        return Message(**{**plain, "body": base64.b64decode(plain["body"], validate=True)})
    except (Damage, TypeError, ValueError) as error:
        if isinstance(error, Damage) and error.code == "unknown-version":
            raise
        raise Damage("this file is no message that was put aside", where, f"look what it is, then remove {where}",
                     "malformed") from error
