# SPDX-License-Identifier: Apache-2.0
"""A bad link: frames between two interfaces, some lost, late or twice; in user space, for want of netem.

As a command it is the process between the two packet sockets.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

from lab.hosts import Host, LabError

ETH_P_ALL: Final = 0x0003
PACKET_OUTGOING: Final = 4
SO_RCVBUFFORCE: Final = 33
SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
FRAME_BYTES: Final = 65_600
BATCH: Final = 64


@dataclass(frozen=True)
class Faults:
    """What the link does to frames, in each direction; shares between 0 and 1, repeatable by the seed."""

    lose: float = 0.0
    delay: float = 0.0
    """This share of the frames comes `delay_s` (up to twice that) later, so after others."""
    duplicate: float = 0.0
    delay_s: float = 0.002
    seed: int = 1


@dataclass
class RelayCount:
    """What became of the frames."""

    passed: int = 0
    lost: int = 0
    delayed: int = 0
    duplicated: int = 0
    overrun: int = 0
    """Frames that the relay itself was too slow for: lost as well."""


class Relay:
    """The relay's process on its host.  `stop` cuts the link for good."""

    def __init__(self, host: Host, one: str, other: str, faults: Faults) -> None:
        self._host = host
        words = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(faults).items()]
        self._process = host.popen(
            [sys.executable, "-c", "from lab.relay import main; main()", one, other, *words],
            env={"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise LabError("the relay did not start")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile no frame passes; they wait."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> RelayCount:
        """Cut the link; what was counted."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGTERM)
        counted = RelayCount(**json.loads(self._process.stdout.read()))
        self._host.stop(self._process)
        return counted


@dataclass(order=True)
class Late:
    """A frame to be sent at its time."""

    due: float
    number: int
    frame: bytes = field(compare=False)
    out: socket.socket = field(compare=False)


class Forwarder:
    """Both directions of the link."""

    def __init__(self, one: str, other: str, faults: Faults) -> None:
        self.faults = faults
        self.count = RelayCount()
        self._random = random.Random(faults.seed)
        self._late: list[Late] = []
        self._ends = [self._open(one), self._open(other)]
        self._epoll = select.epoll()
        self._pairs = {}
        for end, out in (self._ends, self._ends[::-1]):
            self._epoll.register(end, select.EPOLLIN)
            self._pairs[end.fileno()] = (end, out)

    @staticmethod
    def _open(iface: str) -> socket.socket:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        end.bind((iface, ETH_P_ALL))
        return end

    def turn(self) -> None:
        """Wait for frames, or for the time of a late one, and deal with them."""
        wait = max(0.0, self._late[0].due - time.monotonic()) if self._late else 0.1
        for descriptor, _ in self._epoll.poll(wait):
            self._forward(*self._pairs[descriptor])
        while self._late and self._late[0].due <= time.monotonic():
            late = heapq.heappop(self._late)
            self._send(late.out, late.frame)

    def _forward(self, end: socket.socket, out: socket.socket) -> None:
        faults, count, rand = self.faults, self.count, self._random.random
        for _ in range(BATCH):
            try:
                frame, address = end.recvfrom(FRAME_BYTES)
            except BlockingIOError:
                return
            if address[2] == PACKET_OUTGOING:
                continue
            if rand() < faults.lose:
                count.lost += 1
                continue
            if rand() < faults.duplicate:
                count.duplicated += 1
                self._send(out, frame)
            if rand() < faults.delay:
                count.delayed += 1
                due = time.monotonic() + faults.delay_s * (1 + rand())
                heapq.heappush(self._late, Late(due, count.delayed, frame, out))
            else:
                self._send(out, frame)

    def _send(self, out: socket.socket, frame: bytes) -> None:
        self.count.passed += 1
        with contextlib.suppress(OSError):  # the other end is down
            out.send(frame)

    def close(self) -> None:
        """Read the kernel's own count of what it had no room for."""
        for end in self._ends:
            lost = end.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
            self.count.overrun += int.from_bytes(lost[4:8], sys.byteorder)
            end.close()


def main() -> None:
    """Forward until SIGTERM, then print the count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("one")
    parser.add_argument("other")
    for name, value in asdict(Faults()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    forwarder = Forwarder(options.pop("one"), options.pop("other"), Faults(**options))
    running = True

    def stop(_number: int, _frame: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    while running:
        forwarder.turn()
    forwarder.close()
    print(json.dumps(asdict(forwarder.count)), flush=True)
