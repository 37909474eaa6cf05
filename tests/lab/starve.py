# SPDX-License-Identifier: Apache-2.0
"""A process that gets little of the CPU: by a quota of its control group, as `CPUQuota=` of systemd's units gives it.

Where the cpu controller is not to be had (in some containers; it is looked for where the first version of control
groups has it), the process is stopped for as much of each period.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.hosts import until

CONTROLLER: Final = Path("/sys/fs/cgroup/cpu")
PERIOD: Final = 0.1
"""Seconds; as of CFS bandwidth control."""
STOPPED_PERIOD: Final = 1.0
"""Seconds of a period by signals.  Who sends them gets the CPU late on a busy host, and a small part of a tenth of a
second would be a large one.
"""


@contextmanager
def starved(pid: int, share: float) -> Iterator[None]:
    """Let a process run for this share of the time only."""
    if (CONTROLLER / "cpu.shares").exists() and os.access(CONTROLLER / "cgroup.procs", os.W_OK):
        with _by_quota(pid, share):
            yield
    else:
        with _by_signals(pid, share):
            yield


@contextmanager
def _by_quota(pid: int, share: float) -> Iterator[None]:
    group = CONTROLLER / f"tapmirror-lab-{pid}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(f"{PERIOD * 1e6:.0f}")
        (group / "cpu.cfs_quota_us").write_text(f"{PERIOD * share * 1e6:.0f}")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            (CONTROLLER / "cgroup.procs").write_text(str(pid))
        until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


@contextmanager
def _by_signals(pid: int, share: float) -> Iterator[None]:
    over = threading.Event()

    def alternate() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(STOPPED_PERIOD * (1 - share))
            os.kill(pid, signal.SIGCONT)
            time.sleep(STOPPED_PERIOD * share)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
