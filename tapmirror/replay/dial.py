# SPDX-License-Identifier: Apache-2.0
"""How connections to a shadow begin: its addresses, back-off, TLS, and those that are not open yet."""

from __future__ import annotations

import _socket
import errno
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from tapmirror.events import LOOP_DSCP, DropReason
from tapmirror.framing import Pool, ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay.backoff import Backoff
from tapmirror.replay.lane import Lane
from tapmirror.replay.tls import TlsSocket
from tapmirror.spec import Limits, Shadow

Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""(address family, socket address)."""

_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_MARK: Final[dict[int, tuple[int, int, int]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2),
}
"""By family, the option that puts the mark of a tap on every packet."""
_EXHAUSTED: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)


class Dialer:
    """Connections of lanes to one shadow, up to the moment when they are open.

    `addresses` are tried in turn after a failure; `tls` is how a connection is secured, if it is.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        limits: Limits,
        shadow: Shadow,
        ledger: Ledger,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._addresses = list(addresses)
        self._limits = limits
        self._connect_time = shadow.connect_time
        self._tls = tls
        self._tls_name = (shadow.tls.sni if shadow.tls is not None else None) or shadow.host
        self._heads = Pool(limits.heads_bytes)
        self.like: ResponseFramer | None = None
        """Of the last connection that ended: what its answers began with is what others' will."""
        self._events = ledger.events
        self._backoff = Backoff(limits.backoff_max)
        self._deadlines: dict[Lane, float] = {}

    @property
    def reason(self) -> DropReason:
        """Why there is no connection."""
        return self._backoff.reason

    def __bool__(self) -> bool:
        """Some connection is not open yet."""
        return bool(self._deadlines)

    def readdress(self, addresses: Sequence[Address]) -> None:
        """Connect to these from now on; what is connected stays."""
        self._addresses = list(addresses)

    def next_deadline(self) -> float | None:
        """When the oldest attempt has taken too long; None: there is none."""
        return next(iter(self._deadlines.values()), None)

    def overdue(self, now: float) -> Lane | None:
        """A lane whose attempt has taken too long."""
        lane, deadline = next(iter(self._deadlines.items()), (None, 0.0))
        return lane if deadline <= now else None

    def dial(self, lane: Lane, now: float, connections: int) -> bool:
        """Begin to connect, beside so many others; False if that is not possible now (`reason`)."""
        deadlines = self._deadlines
        oldest = next(iter(deadlines.values())) - self._connect_time if deadlines else now
        if not self._backoff.allows(now, oldest):
            return False
        if connections >= self._limits.connections:
            self._backoff.failed(now, DropReason.NO_RESOURCES, now)
            return False
        family, address = self._addresses[0]
        try:
            sock = _socket.socket(family, _KIND)
        except OSError:
            self._backoff.failed(now, DropReason.NO_RESOURCES, now)
            return False
        sock.setsockopt(*_MARK[family])
        if lane.http:
            # The last step of the handshake goes with the request that waits, as its acknowledgement: a packet
            # less, and the shadow wakes once and not twice (tcp_rcv_synsent_state_process, "pingpong mode").
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        number = sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._count_failure(number, now, now)
            return False
        lane.attach(sock, ResponseFramer(self._limits.head_bytes, self._heads, self.like) if lane.http else None)
        deadlines[lane] = now + self._connect_time
        self._events["shadow_connects"] += 1
        return True

    def proceed(self, lane: Lane, *, gone: bool) -> int | None:
        """After an event on a lane that connects: 0 it is open, None not yet, else why it failed (errno)."""
        if gone:
            return lane.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EPIPE  # type: ignore[union-attr]
        if self._tls is not None:
            number = self._secure(lane, self._tls)
            if number != 0:
                return number
        del self._deadlines[lane]
        self._backoff.succeeded()
        return 0

    def failed(self, lane: Lane, number: int, now: float) -> None:
        """The attempt came to nothing."""
        self._count_failure(number, now, self._deadlines[lane] - self._connect_time)

    def forget(self, lane: Lane) -> None:
        """It does not connect any more."""
        self._deadlines.pop(lane, None)

    def _secure(self, lane: Lane, context: ssl.SSLContext) -> int | None:
        """Go on with the TLS handshake; returns as `proceed`."""
        try:
            if not isinstance(lane.sock, TlsSocket):
                assert lane.sock is not None
                lane.sock = TlsSocket(lane.sock, context, self._tls_name)
            return 0 if lane.sock.handshake() else None
        except (OSError, ValueError) as error:
            self._events["tls_failures"] += 1
            number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
            return number or errno.EPROTO

    def _count_failure(self, number: int, now: float, began: float) -> None:
        self._events[f"connect_{errno.errorcode.get(number, 'error')}"] += 1
        exhausted = number in _EXHAUSTED
        self._backoff.failed(now, DropReason.NO_RESOURCES if exhausted else DropReason.SHADOW_DOWN, began)
        self._addresses.append(self._addresses.pop(0))
