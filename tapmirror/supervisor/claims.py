# SPDX-License-Identifier: Apache-2.0
"""That no shadow gets the same requests from two taps: what one mirrors where is claimed on this host.

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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tapmirror.spec import TapSpec

MOST: Final = 256
"""Claims of a tap: each takes a descriptor."""
LONGEST: Final = 107
"""Bytes of a name (sun_path of unix(7), without the leading zero)."""


class ClaimedError(Exception):
    """Another tap does this already; the message is one line for the user."""


class Claims:
    """What is claimed for a tap, until `close`.  Raises `ClaimedError`."""

    def __init__(self, spec: TapSpec) -> None:
        self._held: list[socket.socket] = []
        try:
            for name, what in list(claimed(spec))[:MOST]:
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
            owner = owner_of(name)
            if owner is not None:
                raise ClaimedError(
                    f"{what} already, by the process {owner}: the shadow would get every request twice"
                ) from None

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


def owner_of(name: str) -> int | None:
    """The pid of root's process that holds a name; None: it is not root's, or it is gone.

    The kernel names the socket (sock_diag(7)), its descriptor the process.  /proc/net/unix would do without netlink,
    but whoever puts a line feed into a name can forge lines there.
    """
    from pyroute2 import DiagSocket  # takes 0.2 s to import: only who is refused pays
    from pyroute2.netlink.diag import UDIAG_SHOW_NAME
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with DiagSocket() as netlink:
            netlink.bind()
            found = netlink.get_sock_stats(family=socket.AF_UNIX, show=UDIAG_SHOW_NAME)
        inodes = {f"socket:[{each['udiag_ino']}]" for each in found if each.get_attr("UNIX_DIAG_NAME") == name}
    except (NetlinkError, OSError, UnicodeError):
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == 0 and any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                return int(process.name)
    return None
