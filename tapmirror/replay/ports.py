# SPDX-License-Identifier: Apache-2.0
"""The host's ephemeral ports, of which production needs its share: how answered connections are closed."""

from __future__ import annotations

import _socket
import socket
import struct
from typing import Final

from tapmirror.replay.tls import TlsSocket

TIME_WAIT: Final = 60.0
"""Seconds for which Linux keeps a port whose connection we closed first (TCP_TIMEWAIT_LEN)."""
GENTLE_CLOSES: Final = 4_096
"""How many connections are closed by FIN in that time, at most: of the 28,232 ephemeral ports that the
host has by default (ip_local_port_range) the rest stays production's.  Beyond it, HTTP connections are
closed by RST, which leaves nothing behind."""

_RESET: Final = struct.pack("ii", 1, 0)


def reset_on_close(sock: _socket.socket | TlsSocket) -> None:
    """Let `close` send an RST, so that the peer cannot take a part for a whole."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Ports:
    """Counts the closes that leave a port behind."""

    __slots__ = ("_closes", "_since")

    def __init__(self) -> None:
        self._closes = 0
        self._since = 0.0

    def spare(self, sock: _socket.socket | TlsSocket, now: float) -> None:
        """A connection is about to be closed that has nothing more to say: see that few keep their port."""
        if now - self._since >= TIME_WAIT:
            self._since = now
            self._closes = 0
        self._closes += 1
        if self._closes > GENTLE_CLOSES:
            reset_on_close(sock)
