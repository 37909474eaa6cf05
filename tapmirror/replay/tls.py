# SPDX-License-Identifier: Apache-2.0
"""TLS to a shadow, with the face of a socket.

The reactor sends and reads as on a plain socket.  `BlockingIOError` means "at the next event", whichever
direction TLS waits for: the reactor is woken for both.  A send that did not go is repeated with the same bytes
(OpenSSL takes them from another place: SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, which CPython sets).
"""

from __future__ import annotations

import _socket
import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

from tapmirror.events import Buffer
from tapmirror.spec import Tls


def make_context(spec: Tls, host: str) -> ssl.SSLContext:
    """Read the files of a spec.  Raises OSError (of which `ssl.SSLError` is one) or ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not spec.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif spec.ca_file is not None:
        context.load_verify_locations(spec.ca_file)
    else:
        context.load_default_certs()
        _load_directory(context)
    if spec.cert_file is not None:
        context.load_cert_chain(spec.cert_file, spec.key_file)
    context.set_alpn_protocols(["http/1.1"])
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=spec.sni or host)  # whether it takes the name
    return context


def _load_directory(context: ssl.SSLContext) -> None:
    """Read the system's authorities where they are files of a directory: OpenSSL looks there only when it needs one,
    and the worker can open no file by then.
    """
    if context.cert_store_stats()["x509_ca"]:
        return
    place = ssl.get_default_verify_paths().capath
    for path in sorted(Path(place).iterdir()) if place is not None else ():
        with contextlib.suppress(OSError):
            context.load_verify_locations(path)


class TlsSocket:
    """One connection; takes over a socket that is connected."""

    __slots__ = ("_sock",)

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext, name: str) -> None:
        plain = socket.socket(fileno=sock.detach())
        plain.setblocking(False)
        self._sock = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)

    def handshake(self) -> bool:
        """Continue the handshake; returns whether it is complete.  Raises OSError if it failed."""
        try:
            self._sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Send a part of the data; returns how many bytes.  `flags` are ignored, as in `recv_into`."""
        try:
            return self._sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv_into(self, buffer: bytearray | memoryview, size: int, flags: int = 0) -> int:
        """Read into a buffer.  `flags` are ignored: they are for the kernel, which cannot see into TLS."""
        try:
            return self._sock.recv_into(buffer, min(size, len(buffer)))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Say that nothing more will be sent, in TLS and in TCP."""
        with contextlib.suppress(OSError, ValueError):
            self._sock.unwrap()
        _socket.socket.shutdown(self._sock, how)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the TCP socket."""
        self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        """An option of the TCP socket."""
        return self._sock.getsockopt(level, option, *size)

    def fileno(self) -> int:
        """The descriptor of the TCP socket."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the TCP socket without ending TLS first (no close_notify)."""
        self._sock.close()
