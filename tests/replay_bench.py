# SPDX-License-Identifier: Apache-2.0
"""A reactor with real sockets under it, and the shadow that it talks to."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from lab import PATIENCE
from tapmirror.events import END, START, DropReason, Open, Send
from tapmirror.ledger import Ledger
from tapmirror.replay import Reactor
from tapmirror.replay.observers import Observers
from tapmirror.spec import Limits, Pacing, TapSpec, parse_shadow

WHOLE: Final = START | END
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSE: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
KEEP: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
GET: Final = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
POST: Final = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
RESET: Final = struct.pack("ii", 1, 0)
GIVEN_UP: Final = DropReason.INCOMPLETE


class Bench:
    """A reactor, a listening shadow in the same thread, and what was given to the one.

    `now` is a clock of ours; sockets are real, on loopback.
    """

    def __init__(
        self,
        *,
        pacing: Pacing = Pacing.ASAP,
        backlog: int = 128,
        listen: bool = True,
        shadow: dict[str, Any] | None = None,
        observers: Observers | None = None,
        **limits: Any,
    ) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.listener.setblocking(False)
        if listen:
            self.listener.listen(backlog)
        spec = TapSpec(
            iface="lo",
            ports=(80,),
            shadows=(parse_shadow("127.0.0.1:80", **(shadow or {})),),
            pacing=pacing,
            limits=Limits(**limits),
        )
        self.ledger = Ledger()
        address = (socket.AF_INET, self.address)
        self.reactor = Reactor([address], spec, spec.shadows[0], self.ledger, observers=observers)
        self.now = 100.0
        self.bytes = 0
        self.requests = 0
        self.socks: list[socket.socket] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(ValueError):  # a test may have closed it
            self.reactor.close(DropReason.SHUTDOWN)
        for sock in (self.listener, *self.socks):
            sock.close()
        if kind is None:
            self.check(in_flight=False)

    def check(self, *, in_flight: bool = True) -> None:
        """The identity, in bytes and requests."""
        queued, requests = self.reactor.held()
        assert self.ledger.bytes.mirrored + self.ledger.bytes.dropped.total() + queued == self.bytes
        assert self.ledger.requests.mirrored + self.ledger.requests.dropped.total() + requests == self.requests
        memory, lanes = self.reactor._memory, self.reactor._lanes.values()
        again = [item for lane in lanes for item in lane.queue if item.repeated]
        assert memory.repeats == len(again)
        assert memory.held == sum(len(item.data) for lane in lanes for item in lane.queue if not item.repeated)
        assert memory.resend_quota.count == len(again) + sum(
            map(bool, [data for lane in lanes for data in lane.resendable.requests])
        )
        assert all(
            len(lane.resendable.requests) <= (0 if lane.framer is None else lane.framer.outstanding) for lane in lanes
        )
        if not in_flight:
            assert (queued, requests, memory.resend_quota.count) == (0, 0, 0)

    def give(self, command: Any) -> None:
        """Execute; the identity holds after it."""
        if isinstance(command, Send):
            self.bytes += command.size
            self.requests += bool(command.flags & START)
        self.reactor.execute([command], self.now)
        self.check()

    def send(self, flow: int, data: bytes, flags: int = WHOLE) -> None:
        """One part; it is as long as it stands for."""
        self.give(Send(flow, memoryview(data), len(data), flags))

    def open(self, flow: int = 1, *, http: bool = True) -> socket.socket:
        """Open a flow and have it connected (HTTP: by a first request, which is read and answered)."""
        self.give(Open(flow, http))
        if http:
            self.send(flow, GET % 0)
        sock = self.accept()
        if http:
            self.read(sock, len(GET % 0))
            sock.sendall(OK)
            self.iterate()
        return sock

    def accept(self) -> socket.socket:
        """The shadow's side of the next connection."""
        self.until(lambda: bool(select.select([self.listener], [], [], 0)[0]))
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE)
        self.socks.append(sock)
        self.iterate()
        return sock

    def read(self, sock: socket.socket, size: int) -> bytes:
        """Exactly `size` bytes as the shadow."""
        data = b""

        def whole() -> bool:
            nonlocal data
            if select.select([sock], [], [], 0)[0]:
                piece = sock.recv(size - len(data))
                assert piece, f"ended after {data!r}"
                data += piece
            return len(data) == size

        self.until(whole)
        return data

    def iterate(self, seconds: float = 0.0) -> None:
        """Let the reactor act on what has happened, `seconds` later by its clock."""
        self.now += seconds
        for _ in range(3):
            self.reactor.run_once(0.01, lambda: self.now)
        self.reactor.expire(self.now)
        self.check()

    def timed(self, count: int) -> None:
        """So many responses have been."""
        self.until(lambda: self.ledger.latency.snapshot()["count"] == count)

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn until it holds; fails after `PATIENCE` seconds of the real clock."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it does not come"
            self.reactor.run_once(0.01, lambda: self.now)

    def dropped(self) -> dict[DropReason, int]:
        """Requests, by reason."""
        return {reason: count for reason, count in self.ledger.requests.dropped.items() if count}


def ended(sock: socket.socket) -> str:
    """How the reactor ended a connection: "eof" or "reset"; waits for it, and skips what comes before."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return "reset"
    return "eof"


def benched() -> Iterator[Bench]:
    """For the fixture `bench`: one that is closed afterwards."""
    with Bench() as made:
        yield made
