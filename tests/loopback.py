# SPDX-License-Identifier: Apache-2.0
"""Addresses on loopback that nobody else takes, whatever runs on this host meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

OURS: Final = f"127.{64 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""Of this process: a port that is free there stays so."""


@contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    """Where nothing listens: connections are refused.  The port is bound, or another process may be given it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()
