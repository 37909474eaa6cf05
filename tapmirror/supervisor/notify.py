# SPDX-License-Identifier: Apache-2.0
"""Messages to the service manager about the daemon's state: sd_notify(3), and the watchdog.

The protocol is a datagram of lines to a Unix socket.  It is implemented here because the libraries for it need
libsystemd, or lack MONOTONIC_USEC and the watchdog's time.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Final

STATUS_BYTES: Final = 512
"""Most bytes of a status line, which is read in a terminal."""


class Notifier:
    """Messages to the service manager; without one, nothing is sent.

    The variables are removed from `environ`, so that no child process takes itself for the service.  A message that
    cannot be sent is dropped: nothing in the daemon depends on it.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self.address = _address(environ.pop("NOTIFY_SOCKET", ""))
        """Address of the service manager's socket; empty: there is none."""
        self.watchdog = _watchdog(environ, os.getpid())
        """Seconds between two calls of `alive`, half of the manager's time-out; None: there is no watchdog."""
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)
        self._status = ""

    def ready(self) -> None:
        """Say that the daemon serves, after its start and after each reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it.  Has the time, as `Type=notify-reload` requires."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the daemon is ending."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog.  Call it every `watchdog` seconds, from where it proves that the daemon works."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the line for `systemctl status`; sent only if it has changed."""
        text = " ".join(text.split())[:STATUS_BYTES]
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if not self.address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self.address)


def _address(name: str) -> str:
    """The socket's address: a path, or an abstract name, which begins with `@`."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of the watchdog's time-out, if it is for this process: sd_watchdog_enabled(3)."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 else None
