# SPDX-License-Identifier: Apache-2.0
"""The probe that is sent to each of a shadow's addresses: if it arrives at the tap, the shadow leads back to
production.

It is sent when a tap starts, and to addresses that a name gets later.  It consists of two things:

* A connection without data, with the mark of a tap.  It also shows whether the shadow can be reached.
* A SYN whose initial sequence number the capture knows, because networks may remove the mark, and address translation
  keeps that number.  (Choosing it with a normal socket needs CAP_NET_ADMIN, which a tap does without, so a raw socket
  sends this SYN.  It becomes no connection: nobody here waits for the reply, and the kernel resets it.)

NOTE: a firewall that chooses sequence numbers itself, or answers in the shadow's place (SYN proxy), hides the probe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from tapmirror.events import LOOP_DSCP, SYN
from tapmirror.supervisor.addresses import Address

PROBE_TIME: Final = 0.5
"""Seconds for the connections to all addresses of a shadow, which are made at the same time."""
MAXIMUM_SEGMENT: Final = b"\2\4\x05\xb4"
"""The option of a SYN (RFC 9293, 3.2), 1,460 bytes: without it some firewalls drop it."""
WINDOW: Final = 64_240


class Probe:
    """A probe of some addresses; its creation sends everything.  `close` it.

    `seq`: the initial sequence number of the SYNs.
    """

    def __init__(self, addresses: Sequence[Address], seq: int) -> None:
        self._failure: OSError | None = None
        self._reached = False
        self._pending: dict[int, socket.socket] = {}
        self._poll = select.poll()
        for address in addresses:
            with contextlib.suppress(OSError):  # no right to: the connection is left
                _send_syn(address, seq)
        for family, address in addresses:
            self._connect(family, address)
        self._end = time.monotonic() + PROBE_TIME

    @property
    def failure(self) -> OSError | None:
        """Of a probe that is over: why no connection could be made; None: one was made."""
        return None if self._reached else self._failure or TimeoutError("timed out")

    def over(self, wait: float = 0.0) -> bool:
        """Whether the outcome is known, or the time is over.  Waits for an outcome for at most `wait` seconds."""
        left = max(0.0, self._end - time.monotonic())
        for fd, _ in self._poll.poll(min(wait, left) * 1000) if self._pending else ():
            self._poll.unregister(fd)
            with self._pending.pop(fd) as sock:
                self._know(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return not self._pending or time.monotonic() >= self._end

    def close(self) -> None:
        """Give up what is under way."""
        for sock in self._pending.values():
            sock.close()
        self._pending = {}

    def _connect(self, family: int, address: tuple[Any, ...]) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._failure = self._failure or error
            return
        try:
            _mark(sock)
            code = sock.connect_ex(address)
        except OSError as error:
            self._failure = self._failure or error
        else:
            if code == errno.EINPROGRESS:
                self._pending[sock.fileno()] = sock
                self._poll.register(sock, select.POLLOUT)
                return
            self._know(code)
        sock.close()

    def _know(self, code: int) -> None:
        if code:
            self._failure = self._failure or OSError(code, os.strerror(code))
        else:
            self._reached = True


def _mark(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2)


def _send_syn(shadow: Address, seq: int) -> None:
    """Raises OSError."""
    family, address = shadow
    with (
        socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        socket.socket(family, socket.SOCK_STREAM) as place,
    ):
        _mark(raw)
        to = (address[0], 0, *address[2:])
        raw.connect(to)
        here = raw.getsockname()
        place.bind((here[0], 0, *here[2:]))  # a port that nobody has
        ports = struct.pack("!HH", place.getsockname()[1], address[1])
        source, destination = (socket.inet_pton(family, str(end[0]).partition("%")[0]) for end in (here, address))
        raw.send(syn(source, destination, ports, seq))


def syn(source: bytes, destination: bytes, ports: bytes, seq: int) -> bytes:
    """The TCP header, with its checksum (RFC 9293, 3.1)."""
    rest = struct.pack("!IIBBHHH", seq, 0, (20 + len(MAXIMUM_SEGMENT)) << 2, SYN, WINDOW, 0, 0)
    header = ports + rest + MAXIMUM_SEGMENT
    pseudo = source + destination + struct.pack("!HH", socket.IPPROTO_TCP, len(header))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", total ^ 0xFFFF) + header[18:]
