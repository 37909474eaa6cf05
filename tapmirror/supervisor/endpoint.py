# SPDX-License-Identifier: Apache-2.0
"""The HTTP end point that Prometheus scrapes: one thread, few connections, each with little time.

The server of prometheus-client has a thread for each connection and no time-outs.  This one answers one request for
each connection and closes it.  A slow client is cut off after `PATIENCE`.  If all places are taken, the oldest
connection is closed for a new one.  The text is made at most once in `FRESH` seconds, however often it is asked for.
"""

from __future__ import annotations

import ipaddress
import os
import selectors
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
"""Most connections at a time: a few Prometheus servers have one each."""
PATIENCE: Final = 5.0
"""Seconds for a request to come and its reply to go; Prometheus gives up a scrape after 10."""
HEAD: Final = 8192
"""Bytes of a request that are read."""
FRESH: Final = 1.0
"""Seconds for which a text is used again: taps have new figures once a second."""
REST: Final = 0.05
"""Seconds to pause if no connection can be accepted, because the socket stays readable."""
LOOPBACK: Final = "127.0.0.1"
END: Final = b"\r\n\r\n"


class EndpointError(Exception):
    """The end point cannot be opened; the message is one line for the user."""


def parse_address(text: str) -> tuple[str, int]:
    """(address, port) of `PORT` (on the loopback) or `ADDRESS:PORT`, IPv6 in brackets.  Raises ValueError."""
    host, _, port = text.rpartition(":")
    try:
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif host:
            host = str(ipaddress.IPv4Address(host))
        if port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
            return host or LOOPBACK, int(port)
    except ValueError:  # of an address; it does not say what is wanted
        pass
    raise ValueError(f"{text!r} is not PORT or ADDRESS:PORT")


class Endpoint:
    """Serves a registry at `/metrics` until closed.  `address` is where; raises `EndpointError`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=PLACES)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise EndpointError(f"metrics: cannot listen at {host} port {port}: {reason}") from None
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._registry = registry
        self._texts: dict[str, tuple[float, bytes]] = {}
        self._peers: dict[int, _Peer] = {}
        """The connections by descriptor, the oldest first."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._end_read, self._end_write = socket.socketpair()
        self._selector.register(self._end_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; returns when the thread has ended."""
        self._end_write.close()
        self._thread.join()

    def connections(self) -> int:
        """How many are open."""
        return len(self._peers)

    def _serve(self) -> None:
        while True:
            wait = None
            if self._peers:
                wait = max(0.0, next(iter(self._peers.values())).deadline - time.monotonic())
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._end_read:
                    self._finish()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif (peer := self._peers.get(key.fd)) is not None and not self._advance(peer):
                    self._drop(peer)
            now = time.monotonic()
            for peer in [peer for peer in self._peers.values() if peer.deadline <= now]:
                self._drop(peer)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it is gone again, or there is no descriptor for it
            time.sleep(REST)
            return
        if len(self._peers) >= PLACES:
            self._drop(next(iter(self._peers.values())))
        sock.setblocking(False)
        self._peers[sock.fileno()] = _Peer(sock, time.monotonic() + PATIENCE)
        self._selector.register(sock, selectors.EVENT_READ)

    def _advance(self, peer: _Peer) -> bool:
        """Read or write as much as possible; returns whether the connection stays open."""
        try:
            if not peer.reply:
                data = peer.sock.recv(HEAD)
                peer.head += data
                if END not in peer.head:
                    return bool(data) and len(peer.head) < HEAD
                peer.reply = memoryview(self._reply_or_fail(peer.head.decode("latin-1")))
                self._selector.modify(peer.sock, selectors.EVENT_WRITE)
            peer.reply = peer.reply[peer.sock.send(peer.reply) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(peer.reply)

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.sock.fileno()]
        self._selector.unregister(peer.sock)
        with suppress(OSError):
            peer.sock.shutdown(socket.SHUT_WR)
        peer.sock.close()

    def _finish(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()
        self._listener.close()
        self._end_read.close()

    def _reply_or_fail(self, head: str) -> bytes:
        """The whole reply; an error in making the text must not end the thread."""
        try:
            return self._reply(head)
        except Exception:
            return _response("500 Internal Server Error", "text/plain", b"the metrics cannot be made\n")

    def _reply(self, head: str) -> bytes:
        """The whole reply to a request."""
        line, _, fields = head.partition("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n", "Allow: GET, HEAD\r\n")
        if path != "/metrics":
            return _response("404 Not Found", "text/plain", b"see /metrics\n")
        kind = OPENMETRICS if "application/openmetrics-text" in fields.lower() else PLAIN
        reply = _response("200 OK", kind, self._text(kind))
        return reply if method == "GET" else reply[: reply.index(END) + len(END)]

    def _text(self, kind: str) -> bytes:
        made, text = self._texts.get(kind, (-FRESH, b""))
        now = time.monotonic()
        if now - made >= FRESH:
            make: Callable[[CollectorRegistry], bytes] = openmetrics if kind == OPENMETRICS else plain
            text = make(self._registry)
            self._texts[kind] = (now, text)
        return text


class _Peer:
    """One connection."""

    __slots__ = ("deadline", "head", "reply", "sock")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.head = b""
        self.reply = memoryview(b"")


def _response(status: str, kind: str, body: bytes, more: str = "") -> bytes:
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    return f"HTTP/1.1 {status}\r\n{fields}".encode("latin-1") + body
