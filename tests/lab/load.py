# SPDX-License-Identifier: Apache-2.0
"""Load that counts exactly: N requests, no more and no less, each one answered or counted as failed.

For speed there is wrk; it cannot send a given number, and cuts what is under way at its end.
Bodies and URIs follow from the request's number, so that a receiver can tell whether it got what was sent.
As a command it is the sending process; a URI is /NUMBER.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from lab.hosts import NOFILE_MOST, PATIENCE, Host, LabError

RECV_BYTES: Final = 1 << 18
BLOCK: Final = 1 << 20


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent."""

    address: str
    port: int = 80
    requests: int = 1000
    connections: int = 8
    per_connection: int = 0
    """Requests after which a connection is closed and a new one made; 0: never."""
    depth: int = 1
    """Requests under way on one connection at a time (pipelining)."""
    rate: float = 0.0
    """Requests a second in all; 0: as fast as it goes."""
    bodies: tuple[int, ...] = ()
    """Sizes of the bodies, taken in turn; empty: GET."""
    chunked: bool = False
    """Bodies in chunks and not with a length."""
    seed: int = 0
    paths: tuple[str, ...] = ("/",)
    """Taken in turn; the request's number is put behind."""
    host: str = "production.test"
    timeout: float = PATIENCE
    """Seconds without any response after which what is under way has failed."""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it; times in milliseconds."""

    sent: int
    answered: int
    failed: int
    connections: int
    """How many were made."""
    statuses: dict[str, int]
    seconds: float
    rate: float
    p50: float
    p99: float


@functools.lru_cache(maxsize=4)
def _block(seed: int) -> bytes:
    """1 MiB that looks random and repeats with no short period."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(BLOCK // 32)) * 2


def body(number: int, size: int, seed: int = 0) -> bytes:
    """The body of request `number`: all differ, and equal numbers give equal bodies."""
    start = number * 7919 % BLOCK
    whole, rest = divmod(size, BLOCK)
    block = _block(seed)[start : start + BLOCK]
    return block * whole + block[:rest]


def request(plan: LoadPlan, number: int) -> bytes:
    """The bytes of request `number`."""
    path = plan.paths[number % len(plan.paths)]
    start = f"{'POST' if plan.bodies else 'GET'} {path}{number} HTTP/1.1\r\nHost: {plan.host}\r\n"
    if not plan.bodies:
        return f"{start}\r\n".encode()
    content = body(number, plan.bodies[number % len(plan.bodies)], plan.seed)
    if not plan.chunked:
        return f"{start}Content-Length: {len(content)}\r\n\r\n".encode() + content
    step = 1 + number * 31 % 65_536
    chunks = [content[at : at + step] for at in range(0, len(content), step)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return f"{start}Transfer-Encoding: chunked\r\n\r\n".encode() + coded + b"0\r\n\r\n"


class Load:
    """A load that runs on a host.  `result` waits for its end."""

    def __init__(self, host: Host, plan: LoadPlan) -> None:
        self._host = host
        self._process = host.popen(
            [sys.executable, "-c", "from lab.load import main; main()", msgspec.json.encode(plan).decode()],
            env={"PYTHONPATH": str(Path(__file__).parent.parent)},
            nofile=NOFILE_MOST,
            stdout=subprocess.PIPE,
        )

    def running(self) -> bool:
        """Whether it still sends."""
        return self._process.poll() is None

    def stop(self) -> LoadResult:
        """Send no more, wait for what is under way."""
        self._process.send_signal(signal.SIGINT)
        return self.result()

    def result(self, timeout: float = 300.0) -> LoadResult:
        """Wait for the end.  Raises `LabError` if the load itself broke down."""
        try:
            output, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"the load did not end within {timeout:g} s") from None
        finally:
            code = self._host.stop(self._process)
        if code:
            raise LabError(f"the load ended with status {code}")
        return msgspec.json.decode(output, type=LoadResult)


def load(host: Host, address: str, timeout: float = 300.0, **plan: Any) -> LoadResult:
    """Run a `LoadPlan` from a host to its end."""
    return Load(host, LoadPlan(address=address, **plan)).result(timeout)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection and what is under way on it."""

    sock: socket.socket
    left: int
    """Requests until it is to be closed; -1: no end."""
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytes = b""
    skip: int = 0
    """Bytes of a body that are still to come."""
    times: deque[float] = field(default_factory=deque)
    connected: bool = False
    writing: bool = True


class Sender:
    """The loop: one epoll, non-blocking sockets."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        self.sent = self.answered = self.failed = self.made = 0
        self.todo = plan.requests
        self.stopped = False
        """Send no more.  By a signal, that is between any two steps: `todo` is the loop's alone."""
        self._capacity = 0
        """With `per_connection`: requests for which there is a connection."""
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self._path = plan.paths[0].encode()
        self._get = None if plan.bodies or len(plan.paths) > 1 else f" HTTP/1.1\r\nHost: {plan.host}\r\n\r\n".encode()
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._family = socket.AF_INET6 if ipaddress.ip_address(plan.address).version == 6 else socket.AF_INET
        self._heard = time.monotonic()

    def run(self) -> LoadResult:
        """Send everything, wait for the responses."""
        plan, clock = self.plan, time.monotonic
        start = self._heard = clock()
        for _ in range(min(plan.connections, plan.requests)):
            self._connect_if_due()
        while True:
            if self.stopped:
                self.todo = 0
            if not self.todo and self.sent <= self.answered + self.failed:
                break
            now = clock()
            wait = 1.0
            if plan.rate and self.todo:
                allowed = int((now - start) * plan.rate) + 1 - self.sent
                wait = max(0.0, start + (self.sent + 1) / plan.rate - now) if allowed <= 0 else 0.0
            else:
                allowed = self.todo
            if not self._free:
                wait = 1.0
            while self._free and self.todo and allowed > 0:
                allowed -= self._fill(self._free.popleft(), allowed)
            for descriptor, events in self._epoll.poll(wait):
                self._serve(self._connections[descriptor], events)
            if not self._connections and self.todo:
                break
            if clock() - self._heard > plan.timeout and (self.sent > self.answered + self.failed or not self._free):
                break
        self.failed += self.sent - self.answered - self.failed
        took = clock() - start
        for connection in self._connections.values():
            connection.sock.close()
        ordered = sorted(self.latencies) or [0.0]
        return LoadResult(
            sent=self.sent,
            answered=self.answered,
            failed=self.failed,
            connections=self.made,
            statuses=dict(self.statuses),
            seconds=round(took, 3),
            rate=round(self.answered / took, 1),
            p50=round(ordered[len(ordered) // 2] * 1e3, 3),
            p99=round(ordered[len(ordered) * 99 // 100] * 1e3, 3),
        )

    def _connect_if_due(self) -> None:
        if self.todo and (not self.plan.per_connection or self._capacity < self.todo):
            self._connect()

    def _connect(self) -> None:
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex((self.plan.address, self.plan.port))
        connection = Connection(sock, self.plan.per_connection or -1)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT)
        self.made += 1
        self._capacity += max(0, connection.left)

    def _close(self, connection: Connection, *, again: bool) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()
        if connection in self._free:
            self._free.remove(connection)
        self.failed += len(connection.times)
        self._capacity -= max(0, connection.left)
        if again:
            self._connect_if_due()

    def _fill(self, connection: Connection, allowed: int) -> int:
        """Send as many requests as may be under way here; how many."""
        room = min(self.plan.depth - len(connection.times), allowed, self.todo)
        if connection.left >= 0:
            room = min(room, connection.left)
        if room <= 0:
            return 0
        if connection.left >= 0:
            connection.left -= room
            self._capacity -= room
        first = self.sent
        if self._get is not None:
            tail = self._get
            data = b"".join([b"GET %b%d%b" % (self._path, number, tail) for number in range(first, first + room)])
        else:
            data = b"".join([request(self.plan, number) for number in range(first, first + room)])
        self.sent += room
        self.todo -= room
        now = time.monotonic()
        connection.times.extend([now] * room)
        self._send(connection, memoryview(data))
        return room

    def _send(self, connection: Connection, data: memoryview) -> None:
        try:
            data = data[connection.sock.send(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection, again=True)
            return
        connection.out = data
        if bool(data) != connection.writing:
            connection.writing = bool(data)
            self._epoll.modify(connection.sock, select.EPOLLIN | (select.EPOLLOUT if data else 0))

    def _serve(self, connection: Connection, events: int) -> None:
        if not connection.connected and events & (select.EPOLLERR | select.EPOLLHUP):
            self._close(connection, again=False)  # refused: trying again is not a load's business
            return
        connection.connected = True
        if events & select.EPOLLIN:
            try:
                data = connection.sock.recv(RECV_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(connection, again=True)
                return
            self._heard = time.monotonic()
            self._read(connection, data)
            if connection.left == 0 and not connection.times:
                self._close(connection, again=True)
            elif len(connection.times) < self.plan.depth and connection.left and not connection.out:
                self._offer(connection)
        elif connection.out:
            self._send(connection, connection.out)
            if not connection.out and not connection.times and connection.left:
                self._offer(connection)  # it was answered before its last byte was sent
        else:
            connection.writing = False
            self._epoll.modify(connection.sock, select.EPOLLIN)
            self._offer(connection)

    def _offer(self, connection: Connection) -> None:
        """Ready for the next request: at once, or when the rate allows it."""
        if not self.plan.rate:
            self._fill(connection, self.todo)
        elif connection not in self._free:
            self._free.append(connection)

    def _read(self, connection: Connection, data: bytes) -> None:
        """Count whole responses (with Content-Length or without a body)."""
        if connection.skip:
            used = min(connection.skip, len(data))
            connection.skip -= used
            data = data[used:]
            if connection.skip:
                return
            self._answer(connection)
        if connection.received:
            data = connection.received + data
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            if data[9:12] == b"100":
                data = data[end + 4 :]
                continue
            self.statuses[data[9:12].decode("ascii", "replace")] += 1
            at = data[:end].lower().find(b"content-length: ")
            length = int(data[at + 16 : data.find(b"\r", at)]) if at >= 0 else 0
            missing = end + 4 + length - len(data)
            if missing > 0:
                connection.skip = missing
                data = b""
                break
            data = data[end + 4 + length :]
            self._answer(connection)
        connection.received = data

    def _answer(self, connection: Connection) -> None:
        self.latencies.append(time.monotonic() - connection.times.popleft())
        self.answered += 1


def main() -> None:
    """Send what the plan says; SIGINT ends it early, with nothing cut."""
    sender = Sender(msgspec.json.decode(sys.argv[1], type=LoadPlan))

    def stop(_number: int, _frame: object) -> None:
        sender.stopped = True

    signal.signal(signal.SIGINT, stop)
    print(msgspec.json.encode(sender.run()).decode(), flush=True)
