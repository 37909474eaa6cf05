# SPDX-License-Identifier: Apache-2.0
"""The interfaces of a tap and the capture on each of them, while interfaces appear, disappear and are renamed.

Theory of operation
-------------------
A tap names its interfaces, but a packet socket is bound to an interface's number.  So names are followed: the interface
that has the name now is captured, whatever its number, and one that lost the name is not (because it was renamed,
deleted, moved to another namespace, or its number was reused).  Numbers are not remembered.  Each socket is asked for
the present name of the interface that it is bound to (packet(7): getsockname); that name is empty once the interface
was deleted.

To take a packet socket off an interface, the kernel waits until no processor is handling a packet of it, some 10 ms for
each socket.  A filter that rejects everything takes effect with the next packet and is set in microseconds (`mute`).

The kernel's messages about links (rtnetlink(7)) only say that something changed.  What exists is looked up afterwards,
so lost messages do no harm.  An interface that goes down and comes up again keeps its sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from tapmirror import loader
from tapmirror.source.filter import MAX_LINKS, REFUSE_ALL
from tapmirror.source.sockets import attach_filter, let_in

RTMGRP_LINK: Final = 1
SIOCGIFFLAGS: Final = 0x8913
IFF_UP: Final = 1
NEVER: Final = 0x00FF
"""A protocol that no packet has: EtherTypes begin at 0x600."""
ETH_P_ALL: Final = 0x0003


class Bell:
    """A descriptor that is readable when a link of this network namespace has changed."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK))

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def rung(self) -> bool:
        """Whether anything changed since the last call."""
        rung = False
        while True:
            try:
                self._socket.recv(65_536)
            except BlockingIOError:
                return rung
            except OSError:  # ENOBUFS: there was more than it could hold
                pass
            rung = True

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()


class Hold(Protocol):
    """The capture on one interface."""

    def name(self) -> str:
        """The present name of the captured interface; "": it is gone."""

    def mute(self) -> None:
        """Let no packet in any more, which is quick.  If several interfaces share a socket, this is for all of them.

        Raises OSError.
        """

    def close(self) -> None:
        """End the capture on the interface."""


def bind_to_all(sock: socket.socket, protocol: int) -> None:
    """Bind a packet socket to all interfaces there ever are (Python's bind wants the name of one).  Raises OSError."""
    address = struct.pack("=HHi12x", socket.AF_PACKET, socket.htons(protocol), 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unbind(sock: socket.socket) -> None:
    """Stop a packet socket from receiving.  It cannot be unbound, so it is bound to a protocol that no packet has."""
    with contextlib.suppress(OSError):
        bind_to_all(sock, NEVER)


class Away:
    """Counts the seconds for which something is not there."""

    def __init__(self) -> None:
        self._times: tuple[float, float | None] = (0.0, None)
        """(seconds that are over, since when it is away; None: it is there).  Replaced as a whole, because other
        threads read it."""

    def note(self, *, away: bool) -> None:
        """Take note of whether it is away now."""
        seconds, since = self._times
        if not away:
            self._times = (self.seconds, None)
        elif since is None:
            self._times = (seconds, time.monotonic())

    @property
    def seconds(self) -> float:
        """In all, including a time that still lasts."""
        seconds, since = self._times
        return seconds if since is None else seconds + time.monotonic() - since


class Links:
    """A tap's hold on its interfaces.  `patterns`: their names, or what they match (fnmatch).

    `hold` begins to capture on one interface; it may raise OSError.  `release` may be called in another thread.
    `names`, `waits_for` and above all `mute` never wait for it, though ending a hold takes 10 ms.
    """

    def __init__(self, patterns: Sequence[str], hold: Callable[[str], Hold]) -> None:
        self._patterns = patterns
        self._hold = hold
        self._held: dict[str, Hold] = {}
        self._lock = threading.Lock()
        """Held while holds are begun and ended."""
        self._released = False
        self._suspended = False
        self._refused: dict[str, str] = {}
        """Interfaces that are there and cannot be captured, and why."""
        self._away = Away()
        """The time without an interface to capture, in which something is to be captured."""
        named = [name for name in patterns if not is_pattern(name)] if len(patterns) > 1 else []
        self._missing = {name: Away() for name in named}
        """The same for each one of several that are named.  What a pattern matches may come and go."""

    def names(self) -> list[str]:
        """The names of the interfaces that are captured."""
        return sorted(self._held.copy())

    def follow(self) -> None:
        """Begin and end holds, so that the interfaces that there are now are captured."""
        there = [] if self._suspended else present(self._patterns)
        with self._lock:
            wanted = [] if self._released else there
            for name, hold in self._held.copy().items():
                if name not in wanted or hold.name() != name:
                    self._held.pop(name).close()
            refused: dict[str, str] = {}
            for name in wanted:
                if name not in self._held and not self._released:
                    self._begin(name, refused)
            self._refused = refused
            if self._released:  # perhaps amid this: what was begun or ended after it let packets in
                self.mute()
            self._note_away()

    def _note_away(self) -> None:
        """Take note of which interfaces there are to capture."""
        captures = not (self._suspended or self._released)
        self._away.note(away=captures and not self._held)
        for name, away in self._missing.items():
            away.note(away=captures and name not in self._held)

    @property
    def away(self) -> float:
        """Seconds for which there was no interface to capture, including a time that still lasts."""
        return self._away.seconds

    @property
    def missing(self) -> dict[str, float]:
        """Seconds for which each one of several interfaces could not be captured, by its name; others than 0."""
        found = {name: away.seconds for name, away in self._missing.items()}
        return {name: seconds for name, seconds in found.items() if seconds}

    def _begin(self, name: str, refused: dict[str, str]) -> None:
        try:
            hold = self._hold(name)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENXIO):  # it is gone again
                refused[name] = error.strerror or str(error)
            return
        if hold.name() == name:
            self._held[name] = hold
        else:  # it was renamed just now
            hold.close()

    def suspend(self, suspended: bool) -> None:
        """Capture nothing (until it is called with False), or what there is again."""
        self._suspended = suspended
        self.follow()

    def mute(self) -> None:
        """Let no packet in any more, once and for all; `release` is due.  Quick, in any thread: it takes no lock."""
        self._released = True
        for hold in self._held.copy().values():
            with contextlib.suppress(OSError):  # the interface is gone
                hold.mute()

    def release(self) -> None:
        """Capture nothing any more.  Once and for all; in any thread."""
        self.mute()
        with self._lock:
            self._note_away()
            while self._held:
                self._held.popitem()[1].close()

    def refused(self) -> str:
        """Which interfaces cannot be captured though they are there, and why, in one line; "": all can."""
        name, why = next(iter(self._refused.items()), ("", ""))
        others = len(self._refused) - 1
        return f"{name}{f' and {others} more' if others > 0 else ''}: {why}" if name else ""

    def without(self) -> str:
        """Which interfaces are not captured though others are, and why, in one line; "": all are."""
        held = self._held.copy()
        gone = [name for name in self._missing if name not in held and name not in self._refused]
        if not held:
            return ""
        return "; ".join(filter(None, (f"{', '.join(gone)}: no such interface" if gone else "", self.refused())))

    def waits_for(self) -> str:
        """Why no packet can arrive, in one line; "": packets can arrive."""
        held = list(self._held.copy())
        if not held:
            several = len(self._patterns) > 1 or is_pattern(self._patterns[0])
            what = f"no interface {'like ' if several else ''}{', '.join(self._patterns)}"
            return f"{what} ({self.refused()})" if self._refused else what
        if not any(is_up(name) for name in held):
            return f"{', '.join(held)} {'is' if len(held) == 1 else 'are'} down"
        return ""


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern, which may stand for several interfaces."""
    return any(character in name for character in "*?[")


def present(patterns: Sequence[str]) -> list[str]:
    """The interfaces of this network namespace that have one of these names, or match."""
    return [name for _, name in socket.if_nameindex() if any(fnmatch.fnmatchcase(name, each) for each in patterns)]


def is_up(name: str) -> bool:
    """Whether the interface exists and is up.  True if that cannot be found out for lack of descriptors."""
    try:
        any_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return True
    with any_socket:
        try:
            reply = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
        except OSError:
            return False
    return bool(struct.unpack_from("=H", reply, 16)[0] & IFF_UP)


class Attached(loader.Attachment):
    """A packet socket with the kernel program, bound to one interface."""

    def name(self) -> str:
        """What the interface is called now."""
        return str(self.socket.getsockname()[0])

    def mute(self) -> None:
        """Replace the program by a filter that rejects everything."""
        attach_filter(self.socket, REFUSE_ALL)


class Bound:
    """A packet socket that is bound to one interface.  `close` unbinds it and leaves the socket open."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Raises OSError."""
        self.socket = sock
        sock.bind((name, ETH_P_ALL))

    def name(self) -> str:
        """What the interface is called now."""
        return str(self.socket.getsockname()[0])

    def mute(self) -> None:
        """Attach a filter that rejects everything."""
        attach_filter(self.socket, REFUSE_ALL)

    def close(self) -> None:
        """Unbind the socket, so that it gets no more packets."""
        unbind(self.socket)


class Shared:
    """One of the interfaces of packet sockets that are bound to all of them; a filter lets in what comes from this one.

    The kernel and not the reader looks where a packet comes from, because it does so when the packet comes.  What waits
    in a ring was captured, whatever has become of its interface since.

    Several sockets are bound when they are opened.  A single one is bound here, as long as there is an interface to
    capture: otherwise each packet of the host would cost something.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        ports: Sequence[int] | None,
        name: str,
        links: dict[str, int],
        response_bytes: int = 0,
    ) -> None:
        """`links`: the numbers of the interfaces that are captured, to which this one's is added; `ports` and
        `response_bytes` are those of `let_in`.

        Raises OSError.
        """
        if len(links) >= MAX_LINKS:
            raise OSError(errno.ENOSPC, f"more than {MAX_LINKS} interfaces")
        self.socket = sockets[0]
        self._sockets = sockets
        self._ports = ports
        self._response_bytes = response_bytes
        self._name = name
        self._index = loader.link_index(name, self.socket)
        self._links = links
        let_in(sockets, ports, [*links.values(), self._index], response_bytes)
        links[name] = self._index
        if len(sockets) == 1:
            bind_to_all(self.socket, ETH_P_ALL)

    def name(self) -> str:
        """The name, as long as it belongs to the same interface; otherwise ""."""
        try:
            return self._name if loader.link_index(self._name, self.socket) == self._index else ""
        except OSError:
            return ""

    def mute(self) -> None:
        """Set the filters of all sockets to let nothing in.  That stays so when the hold on one interface is closed."""
        self._links.clear()
        let_in(self._sockets, self._ports, ())

    def close(self) -> None:
        """Let no more packets in from this interface."""
        self._links.pop(self._name, None)
        with contextlib.suppress(OSError):  # closed by now
            let_in(self._sockets, self._ports, [*self._links.values()], self._response_bytes)
        if len(self._sockets) == 1 and not self._links:
            unbind(self.socket)
