# SPDX-License-Identifier: Apache-2.0
"""Claims, so that no shadow gets the same requests from two taps of this host.

A claim is an abstract Unix socket, whose name says what is mirrored where.  Such names belong to a network namespace,
as interfaces do, and are gone with the process that held them, however it ended.  So it works between daemons and
`tapmirror run` alike, and no stale file is believed.  Anybody on the host may take such a name: one that is not root's
is not believed either.

NOTE: names are compared as they are written: an interface and a pattern that includes it, a shadow's name and its
address, are different ones.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tapmirror.spec import TapSpec

MOST: Final = 256
"""Most claims of one tap: each takes a descriptor."""
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST_DUMP: Final = 0x301
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
SHOW_NAME: Final = 0x1
SHOW_UID: Final = 0x40
DIAG_NAME: Final = 0
DIAG_UID: Final = 7
HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
REQUEST: Final = struct.Struct("=BBxxIIIII")
"""unix_diag_req: family, protocol, states, inode, what to show, cookie."""
REPLY: Final = struct.Struct("=BBBBIII")
"""unix_diag_msg: family, type, state, inode, cookie."""
ATTRIBUTE: Final = struct.Struct("=HH")
LONGEST: Final = 107
"""Bytes of a name (sun_path of unix(7), without the leading zero)."""


class ClaimedError(Exception):
    """Another tap does this already; the message is one line for the user."""


class Claims:
    """The claims of one tap, held until `close`.  Raises `ClaimedError`."""

    def __init__(self, spec: TapSpec) -> None:
        self._held: list[socket.socket] = []
        try:
            for name, what in list(dict(claimed(spec)).items())[:MOST]:  # shadows of one tap may be at one address
                self._take(name, what)
        except BaseException:
            self.close()
            raise

    def _take(self, name: str, what: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._held.append(sock)
        if len(name) > LONGEST:
            name = f"{name[:40]}:{hashlib.sha256(name.encode()).hexdigest()}"
        try:
            sock.bind(f"\0{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # no such sockets here: then the daemon's own check must do
            with suppress(OSError):
                holder = holder_of(name)
                if holder is not None:
                    message = f"{what} already, by {holder}: the shadow would get every request twice"
                    raise ClaimedError(message) from None

    def close(self) -> None:
        """Let go."""
        while self._held:
            self._held.pop().close()


def claimed(spec: TapSpec) -> Iterator[tuple[str, str]]:
    """(name, what is claimed by it) for everything that a tap does."""
    for shadow in spec.shadows:
        where = shadow.end_point.lower()
        for port in spec.ports:
            for addr in spec.addrs or ("*",):
                yield (
                    f"tapmirror:{spec.iface}:{addr}:{port}:{where}",
                    f"{spec.iface} port {port} is mirrored to {where}",
                )


def holder_of(name: str) -> str | None:
    """Who holds a name, in words.  None: nobody does any more, or somebody other than root.  Raises OSError.

    The kernel names the socket and its owner (sock_diag(7)).  /proc/net/unix would do without netlink, but whoever puts
    a line feed into a name can forge lines there.
    """
    found = [(inode, uid) for held, inode, uid in sockets() if held == b"\0" + name.encode()]
    if not found or found[0][1] not in (0, None):
        return None
    wanted = f"socket:[{found[0][0]}]"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or has privileges that we lack
            if any(os.readlink(fd) == wanted for fd in (process / "fd").iterdir()):
                return f"the process {process.name}"
    return "another process of root's"


def sockets() -> Iterator[tuple[bytes, int, int | None]]:
    """(name, inode, user) of all Unix sockets of this network namespace that have a name: unix_diag of sock_diag(7).

    pyroute2 does not know UNIX_DIAG_UID.  Before Linux 5.3 the kernel does not either: the user is None then.
    """
    request = REQUEST.pack(socket.AF_UNIX, 0, 0xFFFFFFFF, 0, SHOW_NAME | SHOW_UID, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5.0)
        netlink.send(HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0) + request)
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= HEADER.size:
                length, kind, _, _, _ = HEADER.unpack_from(data)
                if kind in (NLMSG_DONE, NLMSG_ERROR) or length < HEADER.size:
                    return
                message, data = data[HEADER.size : length], data[(length + 3) & ~3 :]
                values = attributes(message[REPLY.size :])
                if DIAG_NAME in values:
                    uid = int.from_bytes(values[DIAG_UID], sys.byteorder) if DIAG_UID in values else None
                    yield values[DIAG_NAME], REPLY.unpack_from(message)[4], uid


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a netlink message, by type."""
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            break
        found[kind] = data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found
