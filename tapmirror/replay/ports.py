# SPDX-License-Identifier: Apache-2.0
"""The host's ephemeral ports, which production needs too: how many a tap may use, and how it closes connections."""

from __future__ import annotations

import _socket
import socket
import struct
from pathlib import Path
from typing import Final

from tapmirror.replay.tls import TlsSocket

RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""First and last ephemeral port of this network namespace, for IPv4 and IPv6."""
DEFAULT_PORTS: Final = 28_232
"""How many there are by default (32768 to 60999)."""
TIME_WAIT: Final = 60.0
"""Seconds for which Linux keeps a port whose connection we closed first (TCP_TIMEWAIT_LEN)."""
GENTLE_CLOSES: Final = 4_096
"""Most connections of a tap that are closed by FIN in that time, if the host has `DEFAULT_PORTS`; the rest of the ports
is production's.  Beyond that, HTTP connections are closed by RST, which does not keep the port.

NOTE: taps know nothing of each other, so each may use as many.  Connections to other destinations can use the same
ports (only the 4-tuple must differ); sockets that bind to a port (port 0) cannot."""

_RESET: Final = struct.pack("ii", 1, 0)
_NOT_SENT: Final = struct.Struct("=144xI")
"""Field of `struct tcp_info` (linux/tcp.h): tcpi_notsent_bytes."""
_RECEIVED: Final = struct.Struct("=44xI4xI72xQ")
"""Fields of `struct tcp_info` (linux/tcp.h): tcpi_last_data_sent and tcpi_last_data_recv (milliseconds ago),
tcpi_bytes_received."""
SILENCE: Final = 50
"""Milliseconds without a byte after which a response counts as complete."""
DOUBT: Final = 1_000
"""The same, if it is not certain that what came answers what was sent last: it came in the same tick of the kernel's
clock (usually 4 ms), or the connection uses TLS, whose own messages count as bytes."""


def reset_on_close(sock: _socket.socket | TlsSocket) -> None:
    """Let `close` send an RST, so that the peer cannot take a part for whole."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def sent_to_the_last(sock: _socket.socket | TlsSocket) -> bool:
    """Whether the kernel has sent everything that it was given; an RST would discard the rest.

    If not, the socket becomes writable when it has.
    """
    (left,) = _NOT_SENT.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NOT_SENT.size))
    if left:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
    return not left


def response_finished(sock: _socket.socket | TlsSocket) -> bool:
    """Whether the shadow has finished its response.

    It has if something came after what was sent last, and then nothing for `SILENCE`, or for `DOUBT` if that may have
    been an earlier response.
    """
    sent, came, size = _RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size))
    sure = came < sent and not isinstance(sock, TlsSocket)
    return bool(size and came <= sent and came >= (SILENCE if sure else DOUBT))


def quiet_since(sock: _socket.socket | TlsSocket) -> bool:
    """Whether it is certain that nothing came after what was sent last.

    It is not certain within a tick of the kernel's clock, nor with TLS, whose end of a connection comes as bytes.
    """
    sent, came, _ = _RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size))
    return bool(came > sent) and not isinstance(sock, TlsSocket)


def received_any(sock: _socket.socket | TlsSocket) -> bool:
    """Whether any byte was received, even if the connection is broken by now.

    The kernel counts a FIN as one byte (tcp_rcv_nxt_update); with TLS, bytes of the protocol count.
    """
    return bool(_RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size))[2] > 1)


def ephemeral_ports() -> int:
    """How many ephemeral ports the host has."""
    try:
        first, last = RANGE.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no /proc here
        return DEFAULT_PORTS
    return int(last) - int(first) + 1


def open_connections(ports: int, parts: int) -> int:
    """How many connections one of `parts` reactors may have open.

    All connections of a tap to a shadow may take half of the ports.
    """
    return max(1, ports // 2 // parts)


def gentle_closes(ports: int, parts: int) -> int:
    """How many closes one of `parts` reactors may leave in `TIME_WAIT`; fewer if the host has few ports."""
    return max(1, GENTLE_CLOSES * min(ports, DEFAULT_PORTS) // DEFAULT_PORTS // parts)


class Ports:
    """Counts the closes that leave a port behind; `gentle`: how many there may be in `TIME_WAIT`."""

    __slots__ = ("_closes", "_gentle", "_since")

    def __init__(self, gentle: int) -> None:
        self._gentle = gentle
        self._closes = 0
        self._since = 0.0

    def spare(self, sock: _socket.socket | TlsSocket, now: float) -> None:
        """Prepare to close a connection that is done: by RST, if too many have kept their port lately."""
        if now - self._since >= TIME_WAIT:
            self._since = now
            self._closes = 0
        self._closes += 1
        if self._closes > self._gentle:
            reset_on_close(sock)
