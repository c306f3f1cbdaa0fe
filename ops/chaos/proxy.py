"""Wires that can be stalled or cut: a TCP relay per wire, from loopback or an address given, all on one thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 65536


class Wire:
    """A relay from a port of its own to a loopback port. Made by `Exchange.wire`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstream: int) -> None:
        self._loop = loop
        self._upstream = upstream
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def stall(self) -> None:
        """Let nothing pass and nobody know: bytes wait, connections stay."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._loop.call_soon_threadsafe(self._cut)

    def mend(self) -> None:
        """Let everything pass again, what waited first."""
        self._loop.call_soon_threadsafe(self._mend)

    async def listen(self, address: str) -> None:
        """Take a free port."""
        self._server = await asyncio.start_server(self._serve, address, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Give the port back."""
        if self._server is not None:
            self._server.close()

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._is_cut = False
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        up_writer: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            if self._is_cut:
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._writers.add(up_writer)
            pumps = {asyncio.create_task(self._pump(reader, up_writer)),
                     asyncio.create_task(self._pump(up_reader, writer))}
            _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in left:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            return  # the server behind it is away: so is this connection
        finally:
            for end in (writer, up_writer):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


class Exchange:
    """All wires of a run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wires: list[Wire] = []

    def wire(self, upstream: int, address: str = "127.0.0.1") -> Wire:
        """Return a new wire from ``address`` to the loopback port ``upstream``."""
        made = Wire(self._loop, upstream)
        self.wires.append(made)
        asyncio.run_coroutine_threadsafe(made.listen(address), self._loop).result(5)
        return made


@contextmanager
def exchange() -> Iterator[Exchange]:
    """Run the wires for the body of the `with`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chaos-wires", daemon=True)
    thread.start()
    made = Exchange(loop)
    try:
        yield made
    finally:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_end_all(made.wires), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        if not thread.is_alive():
            loop.close()


async def _end_all(wires: list[Wire]) -> None:
    for wire in wires:
        wire.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
