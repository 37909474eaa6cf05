# SPDX-License-Identifier: Apache-2.0
"""What the tests of a whole tap share: a tap whose ledger is checked at its end, servers that converse."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Final

from lab import Host, LabError, Tap, hosts, identity, until

UNITS: Final = ("segments", "bytes", "requests")
PATIENCE: Final = hosts.PATIENCE


ROOM: Final[dict[str, Any]] = {"ring_bytes": 64 << 20, "queue_bytes": 64 << 20, "drain_time": 30.0}
"""Limits of a tap that is asked for everything, however little a host that has other work gives its worker and the
shadow: AF_PACKET's ring lasts for eight seconds at least, 40 MB are too few to fill that of eBPF or a queue, and at the
end all has the time to be sent."""
FILED: Final = frozenset(
    (
        "addr",
        "capture",
        "compare",
        "decap",
        "iface",
        "loop_check",
        "pacing",
        "percent",
        "port",
        "promisc",
        "protocol",
        "seed",
    )
) | {"shadow", "workers"}
"""What is said in the same words in a file, which alone can have limits."""


class Mirror(Tap):
    """A tap that is stopped at the end of the `with` block, however the test goes on with its ledger.

    It has `ROOM`, unless it has a file of its own, or options that no file has.
    """

    default: ClassVar[str] = "auto"
    """How it captures if it is not told."""
    _ledger: dict[str, Any] | None = None

    def __init__(
        self, node: Host, /, *, capture: str | None = None, limits: Mapping[str, float] | None = None, **more: Any
    ) -> None:
        """`limits`: as in a file; others than `ROOM`."""
        if "spec" not in more and "file_text" not in more:
            more["capture"] = capture or self.default
        if more.keys() <= FILED:  # JSON is YAML
            ports = more.pop("port", 80)
            more["port" if isinstance(ports, int) else "ports"] = ports
            more = {"spec": json.dumps({"iface": node.iface, **more, "limits": {**ROOM, **(limits or {})}})}
        super().__init__(node, **more)

    def final(self) -> dict[str, Any]:
        """Stop it; its ledger, in which everything is accounted for and nothing is in flight."""
        if self._ledger is None:
            self._ledger = ledger = self.stop()
            identity(ledger)
            assert {unit: ledger[unit]["in_flight"] for unit in UNITS} == dict.fromkeys(UNITS, 0)
        return self._ledger

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.final()
            elif self._ledger is None and self.running():
                with contextlib.suppress(LabError, ValueError):
                    sys.stdout.write(f"the tap's ledger: {self.stop()}\n")
        finally:
            super().__exit__(*error)


def dropped(ledger: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What was given up, by unit and reason; empty: nothing."""
    return {unit: ledger[unit]["dropped"] for unit in UNITS if ledger[unit]["dropped"]}


def endpoint(address: str, port: int) -> str:
    """HOST:PORT, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@contextlib.contextmanager
def connect(host: Host, address: str, port: int, own: int = 0) -> Iterator[socket.socket]:
    """A connection from a host, and there from a port of its own; 0: any."""
    with host.enter():
        sock = socket.create_connection((address, port), timeout=PATIENCE, source_address=("", own))
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Read up to and with `end`, or to the end of the stream."""
    data = b""
    while not data.endswith(end) and (piece := sock.recv(1 << 16)):
        data += piece
    return data


@dataclass
class Heard:
    """One connection to a `Talker`."""

    data: bytearray = field(default_factory=bytearray)
    end: str = ""
    """"eof", "reset", or "" while it lasts."""


class Line:
    """A talker's end of a connection: what is received is kept."""

    def __init__(self, sock: socket.socket, heard: Heard) -> None:
        self._sock = sock
        self._heard = heard
        self.send = sock.sendall
        self._rest = b""

    def receive(self) -> bytes:
        """The next piece; empty at the end."""
        rest, self._rest = self._rest, b""
        if not rest:
            rest = self._sock.recv(1 << 16)
            self._heard.data += rest
        return rest

    def receive_within(self, seconds: float) -> bytes:
        """The next piece; empty at the end, and where none came for so long."""
        self._sock.settimeout(seconds)
        try:
            return self.receive()
        except TimeoutError:
            return b""

    def receive_until(self, end: bytes) -> bytes:
        """Up to and with `end`; empty at the end of the stream."""
        data = b""
        while end not in data:
            piece = self.receive()
            if not piece:
                return b""
            data += piece
        data, _, self._rest = data.partition(end)
        return data + end

    def more_waits(self) -> bool:
        """Whether something arrived that was not received."""
        try:
            return bool(self._rest or self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False


class Talker:
    """A server on a host whose side of each connection is a function, in a thread of its own."""

    def __init__(
        self, host: Host, port: int, talk: Callable[[Line], None], address: str = "::", *, multipath: bool = False
    ) -> None:
        """`multipath`: it speaks Multipath TCP, on IPv4 alone.  Raises OSError where the kernel does not."""
        self.heard: list[Heard] = []
        """By connection, in the order of their beginning; one that said nothing is not among them."""
        self._talk = talk
        self._socks: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with host.enter():
            if multipath:
                self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._listener.bind(("", port))
                self._listener.listen(1024)
            else:
                self._listener = socket.create_server(
                    (address, port), family=family, backlog=1024, dualstack_ipv6=address == "::"
                )
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        host.at_close(self.stop)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        heard = Heard()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._talk(Line(sock, heard))
            heard.end = "eof"
        except ConnectionResetError:
            heard.end = "reset"
        finally:
            self.heard.append(heard)
            sock.close()

    def ended(self, count: int) -> list[Heard]:
        """Wait until `count` connections that said something, or were reset, are over; those."""

        def over() -> list[Heard]:
            return [heard for heard in [*self.heard] if heard.data or heard.end == "reset"]

        until(lambda: len(over()) >= count, f"{count} conversations (now {over()})", PATIENCE)
        return over()

    def __enter__(self) -> Talker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and what is established."""
        for sock in (self._listener, *self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()
