# SPDX-License-Identifier: Apache-2.0
"""A name server of the lab's own, and processes that ask it."""

from __future__ import annotations

import ipaddress
import socket
import struct
import tempfile
import threading
from types import TracebackType
from typing import Final, Self

from lab.hosts import Host, prefix

A: Final = 1
AAAA: Final = 28
NXDOMAIN: Final = 3
ADDRESS: Final = "127.0.0.1"
"""Where it listens."""


class NameServer:
    """Answers for every name with `addresses`; [] is NXDOMAIN, None no reply at all.  The time to live is 0.

    `wrapper` are words before a command that make ADDRESS its only name server.
    """

    def __init__(self, host: Host, addresses: list[str] | None) -> None:
        self.addresses = addresses
        self.asked = 0
        self._file = tempfile.NamedTemporaryFile("w", prefix=prefix(), suffix=".conf")  # noqa: SIM115
        self._file.write(f"nameserver {ADDRESS}\noptions timeout:20 attempts:1\n")  # its thread may be held
        self._file.flush()
        with host.enter():
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((ADDRESS, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def wrapper(self) -> list[str]:
        """In a mount namespace of its own, where /etc/resolv.conf is ours."""
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, self._file.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.sendto(b"", (ADDRESS, 53))  # ends it
        self._thread.join()
        self._sock.close()
        self._file.close()

    def _serve(self) -> None:
        while True:
            query, client = self._sock.recvfrom(4096)
            if not query:
                return
            self.asked += 1
            if self.addresses is not None:
                self._sock.sendto(reply(query, self.addresses), client)


def reply(query: bytes, addresses: list[str]) -> bytes:
    """RFC 1035, 4.1: the question again, and a reply for each address of the kind that was asked for."""
    end = 12
    while query[end]:
        end += query[end] + 1
    question = query[12 : end + 5]
    (kind,) = struct.unpack_from(">H", query, end + 1)
    found = [ipaddress.ip_address(text) for text in addresses]
    packed = [each.packed for each in found if kind == {4: A, 6: AAAA}[each.version]]
    records = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(each)) + each for each in packed)
    flags = 0x8180 | (0 if addresses else NXDOMAIN)
    return query[:2] + struct.pack(">HHHHH", flags, 1, len(packed), 0, 0) + question + records
