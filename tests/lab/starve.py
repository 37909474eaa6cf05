# SPDX-License-Identifier: Apache-2.0
"""A process that gets little of the CPU: stopped for most of each period, as a quota of its control group would do it
(the cpu controller is not to be had in every container).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PERIOD: Final = 0.1
"""Seconds; as of CFS bandwidth control."""


@contextmanager
def starved(pid: int, share: float) -> Iterator[None]:
    """Let a process run for this share of the time only."""
    over = threading.Event()

    def alternate() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(PERIOD * (1 - share))
            os.kill(pid, signal.SIGCONT)
            time.sleep(PERIOD * share)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
