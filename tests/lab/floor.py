# SPDX-License-Identifier: Apache-2.0
"""The floor that a mirror's cost is held against: the same bytes, sent and drained by the barest loop, no capture.

As a command it is the sending process; it prints the CPU, in microseconds a request, that it took.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import socket
import sys
import time

import msgspec

from lab.load import LoadPlan, request

PAUSE = 0.0012
"""Seconds between two looks at what is due, as in the tap's own loop."""
WASTE = 1 << 20


class Floor:
    """Sends the requests of a plan as they fall due and discards what comes back."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._address = (plan.address, plan.port)
        self._epoll = select.epoll()
        self._waste = bytearray(WASTE)
        self._data = request(plan, 0)
        self._open: dict[int, socket.SocketType] = {}

    def run(self) -> float:
        """Microseconds of CPU, user and system, for each request."""
        plan = self._plan
        send = self._connection_each if plan.per_connection else self._keep_alive
        if not plan.per_connection:
            self._connect_all()
        before = _cpu()
        start = time.monotonic()
        sent = 0
        while sent < plan.requests:
            due = min(plan.requests, int((time.monotonic() - start) * plan.rate))
            send(due - sent)
            sent = due
            time.sleep(PAUSE)
        while plan.per_connection and self._open:
            send(0)
            time.sleep(PAUSE)
        return (_cpu() - before) / plan.requests * 1e6

    def _socket(self) -> socket.SocketType:
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            raise ConnectionError(f"connect to {self._address}")
        return sock

    def _connect_all(self) -> None:
        socks = [self._socket() for _ in range(self._plan.connections)]
        time.sleep(0.3)
        self._turn = socks
        self._next = 0

    def _keep_alive(self, count: int) -> None:
        """Send on one connection after the other; drain each when it comes round again."""
        socks, data, waste = self._turn, self._data, self._waste
        for _ in range(count):
            sock = socks[self._next % len(socks)]
            self._next += 1
            if self._next % (len(socks) * 16) < len(socks):
                with contextlib.suppress(BlockingIOError):
                    sock.recv_into(waste, WASTE, socket.MSG_TRUNC)
            view = memoryview(data)
            while view:
                try:
                    view = view[sock.send(view) :]
                except BlockingIOError:
                    time.sleep(PAUSE)

    def _connection_each(self, count: int) -> None:
        """Connect, send, drain, close."""
        for _ in range(count):
            sock = self._socket()
            self._open[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        for number, events in self._epoll.poll(0.0):
            sock = self._open[number]
            if events & select.EPOLLIN:
                sock.recv_into(self._waste, WASTE, socket.MSG_TRUNC)
                del self._open[number]
                sock.close()
            else:
                sock.send(self._data)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Send what the plan says."""
    print(Floor(msgspec.json.decode(sys.argv[1], type=LoadPlan)).run())
