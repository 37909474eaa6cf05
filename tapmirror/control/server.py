# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the control socket: many clients, none of which can block it.

Nothing here waits.  Each client has one request in progress; nothing more is read from it until it has taken the
reply.  So a client costs at most a line and a reply.  Time-outs end whatever stalls: half a line, a reply that is
not taken, a connection without requests.  The kernel says who the client is (SO_PEERCRED, SO_PEERGROUPS of unix(7)),
not the client.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from tapmirror.control.messages import (
    MAX_LOOKING,
    MAX_MESSAGE,
    AnyRequest,
    Lines,
    ProtocolError,
    read_request,
    write_error,
    write_reply,
)

SO_PEERGROUPS: Final = 59
"""Linux 4.13; Python has no name for it."""
MAX_CLIENTS: Final = 64
"""Most clients at a time.  For one more, the one that is idle longest is closed."""
MAX_USERS_CLIENTS: Final = 16
"""Most clients at a time of one user other than root, so that no user can take all places."""
MAX_HELD: Final = 8 << 20
"""Most bytes of unfinished requests of all clients together."""
READ: Final = 1 << 16
"""Most bytes read from a client in one iteration."""
ACCEPTS: Final = 32
"""Most new connections that are accepted in one iteration of the loop."""
HALF_TIME: Final = 5.0
"""Seconds for the rest of a request whose first byte came."""
TAKE_TIME: Final = 10.0
"""Seconds for a client to take a reply."""
IDLE_TIME: Final = 300.0
"""Seconds that a connection may be open without a request."""


class Wait(enum.Enum):
    """Which readiness of a socket is of interest."""

    NOTHING = enum.auto()
    READ = enum.auto()
    WRITE = enum.auto()


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end of a connection, as the kernel says."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    may_change: bool


class Call:
    """A request that waits for its reply.  Answer it once, at any time, from the server's thread."""

    def __init__(self, client: _Connection, request: AnyRequest) -> None:
        self.peer = client.peer
        self.request = request
        self._client = client

    def answer(self, result: dict[str, Any], descriptor: int | None = None) -> None:
        """Say that it is done.  The descriptor is sent with the reply, and becomes the server's."""
        self._client.send(write_reply(self.request.id, result), descriptor=descriptor)

    def refuse(self, code: str, message: str, problems: Sequence[str] = ()) -> None:
        """Say why it is not done; `code` is one of `ProtocolError`."""
        self._client.send(write_error(self.request.id, code, message, problems))


class _Connection:
    """One client."""

    def __init__(self, server: Server, sock: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.sock = sock
        self.lines = Lines(MAX_MESSAGE if peer.may_change else MAX_LOOKING)
        self.since = time.monotonic()
        """When the connection's present state began."""
        self.waits = False
        """Whether the client waits for the reply to its request."""
        self._server = server
        self._out = memoryview(b"")
        self._descriptor: int | None = None
        """To be sent with the first byte of `_out`."""
        self._last = False

    def deadline(self) -> float:
        """When the client is given up."""
        if self.waits:
            return float("inf")
        return self.since + (TAKE_TIME if self._out else HALF_TIME if len(self.lines) else IDLE_TIME)

    def readable(self) -> None:
        """Take what came."""
        try:
            data = self.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._server.drop(self)
            return
        if not len(self.lines):
            self.since = time.monotonic()
        self.lines.feed(data)
        self._next()

    def writable(self) -> None:
        """Send on, or serve what came already."""
        if self._out:
            self._flush()
        else:
            self._next()

    def close(self) -> None:
        """Nothing more goes either way."""
        self._close_descriptor()
        self.sock.close()

    def send(self, data: bytes, *, last: bool = False, descriptor: int | None = None) -> None:
        """Send the reply, with the descriptor, which is closed afterwards; `last`: then close the connection."""
        self._descriptor = descriptor
        if self.sock.fileno() < 0:
            self._close_descriptor()
            return
        self.waits = False
        self._last = last
        self._out = memoryview(data)
        self.since = time.monotonic()
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                if self._descriptor is not None:
                    count = socket.send_fds(self.sock, [self._out], [self._descriptor])
                    self._close_descriptor()
                else:
                    count = self.sock.send(self._out)
                self._out = self._out[count:]
        except BlockingIOError:
            self._server.wait_for(self, Wait.WRITE)
        except OSError:
            self._server.drop(self)
        else:
            self._sent()

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _sent(self) -> None:
        if self._last:
            self._server.drop(self)
            return
        self.since = time.monotonic()
        # One request in an iteration: what is here already has its turn when the socket is reported as writable.
        self._server.wait_for(self, Wait.WRITE if len(self.lines) else Wait.READ)

    def _next(self) -> None:
        """Serve the next request, if it is whole."""
        try:
            line = self.lines.next()
            if line is None:
                self._server.wait_for(self, Wait.READ)
                return
            request = read_request(line)
        except ProtocolError as error:
            self.send(write_error(error.id, error.code, str(error)), last=error.id is None)
            return
        if request.changes and not self.peer.may_change:
            self._server.denied(self.peer, request)
            message = f"only root and members of the group {self._server.group} may {type(request).__name__.lower()}"
            self.send(write_error(request.id, "denied", message))
            return
        self.waits = True
        self._server.wait_for(self, Wait.NOTHING)
        self._server.serve(Call(self, request))


class Server:
    """Listens at `path` and serves requests in the running asyncio loop.

    `serve` is called with each request that the peer may make, `denied` with each that it may not.  `barred` are user
    ids that are turned away.
    Call `expire` about once a second.  Raises OSError if the socket cannot be made.
    """

    def __init__(
        self,
        path: Path,
        serve: Callable[[Call], None],
        denied: Callable[[Peer, AnyRequest], None],
        *,
        group: str,
        gid: int | None,
        barred: frozenset[int] = frozenset(),
    ) -> None:
        self.serve = serve
        self.denied = denied
        self.group = group
        self._gid = gid
        self._barred = barred
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._clients: set[_Connection] = set()
        self._listener = listen(path, gid)
        self._accepting = True
        self._loop.add_reader(self._listener, self._accept)

    def expire(self, now: float) -> None:
        """Give up clients that stall."""
        for client in [client for client in self._clients if client.deadline() <= now]:
            self.drop(client)
        held = sorted(self._clients, key=lambda client: len(client.lines))
        while held and sum(len(client.lines) for client in held) > MAX_HELD:
            self.drop(held.pop())
        if not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Close all connections and remove the socket."""
        for client in [*self._clients]:
            self.drop(client)
        self._loop.remove_reader(self._listener)
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()

    def drop(self, client: _Connection) -> None:
        """Close a connection."""
        if client in self._clients:
            self._clients.discard(client)
            self.wait_for(client, Wait.NOTHING)
            client.close()

    def wait_for(self, client: _Connection, what: Wait) -> None:
        """Set for which readiness of a client's socket the loop waits."""
        if what is Wait.READ:
            self._loop.add_reader(client.sock, client.readable)
        else:
            self._loop.remove_reader(client.sock)
        if what is Wait.WRITE:
            self._loop.add_writer(client.sock, client.writable)
        else:
            self._loop.remove_writer(client.sock)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The connection still waits; `expire` tries again, for a busy loop would take the CPU.
                    self._loop.remove_reader(self._listener)
                    self._accepting = False
                return
            sock.setblocking(False)
            peer = peer_of(sock, self._gid)
            if peer.uid in self._barred:
                turn_away(sock, "denied", "the user that workers run as may ask for nothing")
                continue
            if not self._make_room(peer):
                turn_away(sock, "busy", "too many connections; try again")
                continue
            client = _Connection(self, sock, peer)
            self._clients.add(client)
            self.wait_for(client, Wait.READ)

    def _make_room(self, peer: Peer) -> bool:
        """Whether there is a place for a client.  An idle one may be closed: the user's own first, never root's."""
        own = [client for client in self._clients if client.peer.uid == peer.uid]
        full = len(self._clients) >= MAX_CLIENTS
        if peer.uid != 0 and len(own) >= MAX_USERS_CLIENTS:
            candidates = own
        elif full:
            candidates = [client for client in self._clients if client.peer.uid != 0 or peer.uid == 0]
        else:
            return True
        idle = [client for client in candidates if not client.waits]
        if idle:
            self.drop(min(idle, key=lambda client: client.since))
        return bool(idle)


def turn_away(sock: socket.socket, code: str, message: str) -> None:
    """Say why, and close.  The buffer of a new connection has room for that."""
    with sock, suppress(OSError):
        sock.send(write_error(None, code, message))


def listen(path: Path, gid: int | None) -> socket.socket:
    """A listening socket of mode 0660 (0600 without a group).

    A socket that is already there is a dead daemon's, because the caller holds the lock, and is replaced.  Anything
    else is not removed.  Raises OSError.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket: remove it", os.fspath(path))
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
            os.chmod(path, 0o660)
        listener.setblocking(False)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_of(sock: socket.socket, gid: int | None) -> Peer:
    """Who connected; root, our own user and members of the group may change things."""
    size = struct.calcsize("3i")
    pid, uid, own = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    groups: tuple[int, ...] = ()
    # NOTE: Python gives 1 KiB for the reply; a process with more than 256 groups counts with its first group only.
    with suppress(OSError):
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        groups = struct.unpack(f"{len(data) // 4}I", data)
    member = gid is not None and gid in (own, *groups)
    return Peer(pid, uid, own, groups, may_change=uid in (0, os.geteuid()) or member)
