# SPDX-License-Identifier: Apache-2.0
"""How connections to a shadow begin: its addresses, back-off, TLS, and attempts that are in progress."""

from __future__ import annotations

import _socket
import errno
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

from tapmirror.events import LOOP_DSCP, DropReason
from tapmirror.framing import HeadMemory, ResponseFramer
from tapmirror.ledger import CONNECT_FAILED, CONNECT_SILENT, Ledger
from tapmirror.replay.backoff import FIRST, UNANSWERED, Backoff
from tapmirror.replay.lane import Lane
from tapmirror.replay.ports import received_any
from tapmirror.replay.tls import TlsSocket
from tapmirror.spec import Limits, Shadow

Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""(address family, socket address)."""

_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_MARK: Final[dict[int, tuple[int, int, int]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2),
}
"""The socket option that puts the mark of a tap on every packet, by address family."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})
"""Errors that say that this host lacks something, whatever the address."""
FRUITLESS: Final = 16
"""An address counts as down after it accepted and broke off this many connections in a row without sending a byte: it
may be a forwarder without a backend.  A version that fails half of its requests in this way has that many in a row once
in 65,000."""
LOOKS: Final = 64
"""Most open connections of an address that are asked whether anything was received, the newest first."""


class Place:
    """One address of a shadow."""

    __slots__ = ("_fruitless", "_silence", "address", "attempts", "backoff", "family", "open", "reason")

    def __init__(self, address: Address, longest: float, first: float) -> None:
        self.family, self.address = address
        self.backoff = Backoff(longest, first)
        self.attempts: dict[Lane, float] = {}
        """Attempts in progress, with the time at which each began."""
        self.open: dict[Lane, float] = {}
        """Connections that are open, with the time at which each attempt began."""
        self.reason = DropReason.SHADOW_DOWN
        """Why it cannot be connected to, as long as it cannot."""
        self._fruitless = 0
        """How many connections in a row it broke off without a byte."""
        self._silence = Backoff(longest, first)
        """Pauses of an address that breaks off too many connections without a byte."""

    @property
    def down(self) -> bool:
        """Whether the last attempt failed, or connections are broken off without a byte."""
        return self.backoff.pause > 0 or self.silent

    @property
    def silent(self) -> bool:
        """Whether the address takes connections and breaks all off without a byte."""
        return self._silence.pause > 0

    def allows(self, now: float) -> bool:
        """Whether to try it now."""
        if self._silence.pause:
            if not self._silence.allows(now, now):
                return False
            self._listen()
        return self.backoff.allows(now, next(iter(self.attempts.values()), now))

    def broke_off(self, lane: Lane, now: float) -> bool:
        """The address ended a connection; returns whether it did so without sending a byte."""
        if lane.sock is None or received_any(lane.sock):
            return False
        if lane.excused:
            self._silence.undecided()
            return True
        lane.blamed = self
        self._fruitless += 1
        if self._fruitless >= FRUITLESS and not self._silence.knows(self.open[lane]) and not self._listen():
            self.reason = DropReason.SHADOW_DOWN
            self._silence.failed(now, self.open[lane])
        return True

    def forgive(self) -> None:
        """Do not count one of the connections that the address broke off, because production broke it off too."""
        self._fruitless = max(0, self._fruitless - 1)
        self._silence.undecided()
        if self._fruitless < FRUITLESS:
            self._silence.succeeded()

    def ends(self, lane: Lane) -> None:
        """An open connection ends, whoever ends it."""
        if self._fruitless and lane.sock is not None and received_any(lane.sock):
            self._spoke()
        del self.open[lane]

    def _listen(self) -> bool:
        """Whether something was received on an open connection: then the address is not down."""
        if any(lane.sock is not None and received_any(lane.sock) for lane in islice(reversed(self.open), LOOKS)):
            self._spoke()
            return True
        return False

    def _spoke(self) -> None:
        self._fruitless = 0
        self._silence.succeeded()


class Dialer:
    """Opens the connections of lanes to one shadow.

    The shadow's addresses take turns, except those that failed, which are left alone for a while.  `tls`: how
    connections are secured, if they are.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        limits: Limits,
        shadow: Shadow,
        ledger: Ledger,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._limits = limits
        self._connect_time = shadow.connect_time
        self._tls = tls
        self._tls_name = (shadow.tls.sni if shadow.tls is not None else None) or shadow.host
        self._heads = HeadMemory(limits.heads_bytes)
        self.like: ResponseFramer | None = None
        """The framer of the last connection that ended: the next one's responses will probably have the same head."""
        self.last = 0
        """How many requests the shadow answered on the last connection that it closed with notice (RFC 9112, 9.6).
        Many servers allow a fixed number for each connection, or one (HTTP/1.0).  0: unknown, or it continued after
        that."""
        self._events = ledger.events
        self._own = Backoff(limits.backoff_max)
        """Back-off while this host lacks a descriptor, a port or memory, which is no address's fault."""
        self._places: deque[Place] = deque()
        self._attempts: dict[Lane, tuple[float, Place]] = {}
        """Attempts in progress: until when each may last, and to which address."""
        self._open: dict[Lane, Place] = {}
        """The address of each open connection."""
        self.reason = DropReason.SHADOW_DOWN
        """Why the last call of `dial` failed."""
        self.readdress(addresses)

    def __bool__(self) -> bool:
        """Whether an attempt is in progress."""
        return bool(self._attempts)

    def readdress(self, addresses: Sequence[Address]) -> None:
        """Connect to these from now on; what is connected stays."""
        known = {(place.family, place.address): place for place in self._places}
        longest, first = self._limits.backoff_max, FIRST * len(addresses)  # ten attempts a second, all together
        self._places = deque(known.get(address) or Place(address, longest, first) for address in addresses)

    @property
    def elsewhere(self) -> bool:
        """Whether an address has not failed since it was last connected to."""
        return any(not place.down for place in self._places)

    def next_deadline(self) -> float | None:
        """When the oldest attempt will have taken too long; None: there is none."""
        if not self._attempts:
            return None
        lane, (deadline, place) = next(iter(self._attempts.items()))
        return min(deadline, place.attempts[lane] + UNANSWERED) if self._may_leave(lane, place) else deadline

    def overdue(self, now: float) -> Lane | None:
        """A lane whose attempt has taken too long.  That is soon if the address is silent and another one is up."""
        deadline = self.next_deadline()
        return next(iter(self._attempts)) if deadline is not None and deadline <= now else None

    def _may_leave(self, lane: Lane, place: Place) -> bool:
        """Whether no connection to this address is open, and another address may be used."""
        return not isinstance(lane.sock, TlsSocket) and any(
            each is not place and not each.down for each in self._places
        )

    def dial(self, lane: Lane, now: float, connections: int) -> bool:
        """Begin to connect, if `connections` others allow it; False: not possible now, see `reason`."""
        if self._own.pause and not self._own.allows(now, now):
            self.reason = DropReason.NO_RESOURCES
            return False
        if connections >= self._limits.connections:
            self._exhausted(now, now)
            return False
        while (place := self._next(now)) is not None:
            try:
                sock = _socket.socket(place.family, _KIND)
            except OSError:
                self._exhausted(now, now)
                return False
            sock.setsockopt(*_MARK[place.family])
            if lane.http:
                # The handshake's last acknowledgement is sent together with the request that waits: one packet less,
                # and the shadow wakes once instead of twice (tcp_rcv_synsent_state_process, "pingpong mode").  For
                # responses that are timed this is undone (`latency`, `observer`).
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            number = sock.connect_ex(place.address)
            if number in (0, errno.EINPROGRESS):
                lane.attach(
                    sock,
                    ResponseFramer(self._limits.head_bytes, self._heads, self.like) if lane.http else None,
                    self.last,
                )
                place.attempts[lane] = now
                self._attempts[lane] = now + self._connect_time, place
                self._events["shadow_connects"] += 1
                if self._own.pause:
                    self._own.succeeded()
                return True
            sock.close()
            self._count_failure(number, now, now, place)
            if number in _EXHAUSTED:
                return False
        self.reason = self._places[0].reason
        return False

    def _next(self, now: float) -> Place | None:
        """The address whose turn it is."""
        places = self._places
        if len(places) == 1:
            return places[0] if places[0].allows(now) else None
        for _ in range(len(places)):
            place = places[0]
            places.rotate(-1)
            if place.allows(now):
                return place
        return None

    def proceed(self, lane: Lane, *, gone: bool) -> int | None:
        """Handle an event on a lane that connects: 0 it is open, None not yet, else why it failed (errno)."""
        if gone:
            return lane.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EPIPE  # type: ignore[union-attr]
        if self._tls is not None:
            number = self._secure(lane, self._tls)
            if number != 0:
                return number
        _, place = self._attempts.pop(lane)
        place.open[lane] = place.attempts.pop(lane)
        self._open[lane] = place
        if place.backoff.pause:
            place.backoff.succeeded()
        self._events["shadow_connected"] += 1
        return 0

    def failed(self, lane: Lane, number: int, now: float) -> None:
        """The attempt failed."""
        deadline, place = self._attempts[lane]
        self._count_failure(number, now, deadline - self._connect_time, place)

    def broke_off(self, lane: Lane, now: float) -> None:
        """The shadow ended a connection for requests."""
        place = self._open.get(lane)
        if place is not None and place.broke_off(lane, now):
            self._events["shadow_broke_off"] += 1
            if place.silent and not lane.excused:  # nobody was connected to
                self._events[CONNECT_SILENT] += 1

    def forget(self, lane: Lane) -> None:
        """Forget a lane that does not connect any more, or whose connection is closed."""
        if lane in self._attempts:
            _, place = self._attempts.pop(lane)
            del place.attempts[lane]
        elif (where := self._open.pop(lane, None)) is not None:
            where.ends(lane)

    def _secure(self, lane: Lane, context: ssl.SSLContext) -> int | None:
        """Continue the TLS handshake; returns the same as `proceed`."""
        try:
            if not isinstance(lane.sock, TlsSocket):
                assert lane.sock is not None
                lane.sock = TlsSocket(lane.sock, context, self._tls_name)
            return 0 if lane.sock.handshake() else None
        except (OSError, ValueError) as error:
            self._events["tls_failures"] += 1
            if isinstance(error, ssl.SSLCertVerificationError):
                self._events["tls_untrusted"] += 1
            number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
            return number or errno.EPROTO

    def _count_failure(self, number: int, now: float, began: float, place: Place) -> None:
        self._events[f"{CONNECT_FAILED}{errno.errorcode.get(number, 'error')}"] += 1
        if number in _EXHAUSTED:
            self._exhausted(now, began)
            return
        # Local ports run out for each address separately (RFC 6056, 3.2), and this host may lack the address family.
        place.reason = DropReason.NO_RESOURCES if number == errno.EADDRNOTAVAIL else DropReason.SHADOW_DOWN
        self.reason = place.reason
        place.backoff.failed(now, began)

    def _exhausted(self, now: float, began: float) -> None:
        self.reason = DropReason.NO_RESOURCES
        self._own.failed(now, began)
