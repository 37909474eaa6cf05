# SPDX-License-Identifier: Apache-2.0
"""The HTTP end point that Prometheus scrapes: one thread, few connections, each with little time.

The library's own server makes a thread for each connection and waits for ever.  This one answers one request a
connection and closes; who is slow is cut off after `PATIENCE`, and while all places are taken the oldest connection
makes room.  The text is made at most once in `FRESH`, however often it is asked for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST as PLAIN
from prometheus_client.exposition import generate_latest as plain
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

PLACES: Final = 32
"""Connections at a time: a few Prometheus servers have one each."""
PATIENCE: Final = 5.0
"""Seconds for a request to come and its answer to go; Prometheus gives up a scrape after 10."""
HEAD: Final = 8192
"""Bytes of a request."""
FRESH: Final = 1.0
"""Seconds for which a text serves: the taps are asked once a second."""
LOOPBACK: Final = "127.0.0.1"


class EndpointError(Exception):
    """The end point cannot be opened; the message is one line for the user."""


def parse_address(text: str) -> tuple[str, int]:
    """(address, port) of `PORT` (on the loopback) or `ADDRESS:PORT`, IPv6 in brackets.  Raises ValueError."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif host:
        host = str(ipaddress.IPv4Address(host))
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 <= int(port) < 65536):
        raise ValueError(f"{text!r} is not PORT or ADDRESS:PORT")
    return host or LOOPBACK, int(port)


class Endpoint:
    """Serves a registry at `/metrics` until closed.  `address` is where; raises `EndpointError`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=PLACES)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise EndpointError(f"metrics: cannot listen at {host} port {port}: {reason}") from None
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._registry = registry
        self._texts: dict[str, tuple[float, bytes]] = {}
        self._open: dict[asyncio.StreamWriter, None] = {}
        """The connections, the oldest first."""
        self._ended = asyncio.Event()
        runner = asyncio.Runner()
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=self._run, args=(runner,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; returns when the thread has ended."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self, runner: asyncio.Runner) -> None:
        with runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=HEAD)
        await self._ended.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self._open) >= PLACES:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.decode("latin-1")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()
            self._open.pop(writer, None)

    def _answer(self, head: str) -> bytes:
        """The whole answer to a request."""
        line, _, fields = head.partition("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n", "Allow: GET, HEAD\r\n")
        if path != "/metrics":
            return _response("404 Not Found", "text/plain", b"see /metrics\n")
        kind = OPENMETRICS if "application/openmetrics-text" in fields.lower() else PLAIN
        answer = _response("200 OK", kind, self._text(kind))
        return answer if method == "GET" else answer[: answer.index(b"\r\n\r\n") + 4]

    def _text(self, kind: str) -> bytes:
        made, text = self._texts.get(kind, (-FRESH, b""))
        now = time.monotonic()
        if now - made >= FRESH:
            make: Callable[[CollectorRegistry], bytes] = openmetrics if kind == OPENMETRICS else plain
            text = make(self._registry)
            self._texts[kind] = (now, text)
        return text


def _response(status: str, kind: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
