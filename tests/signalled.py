# SPDX-License-Identifier: Apache-2.0
"""A signal whose handler raises, as those of `tapmirror run` while it starts, at a line that the test says."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock


class Ended(BaseException):
    """What the handler raises."""


@contextmanager
def ending(number: int = signal.SIGTERM) -> Iterator[None]:
    """Meanwhile this signal raises `Ended`."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Ended

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


def signal_ourselves(number: int = signal.SIGTERM) -> None:
    """It comes in this thread, here or when it is held back no more."""
    signal.pthread_kill(threading.get_ident(), number)


@contextmanager
def met_by_a_signal(number: int = signal.SIGTERM) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Meanwhile a child that is started stands still when the signal comes to us, before who started it has it; the
    signal raises `Ended`.  The children.
    """
    begun: list[subprocess.Popen[bytes]] = []

    class Met(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            begun.append(self)
            os.kill(self.pid, signal.SIGSTOP)
            signal_ourselves(number)

    with mock.patch.object(subprocess, "Popen", Met), ending(number):
        try:
            yield begun
        finally:
            for child in begun:
                child.kill()
                child.wait()
