# SPDX-License-Identifier: Apache-2.0
"""Production's processes come first on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tapmirror.precedence import LONGEST, give_way

_SCHED_GETATTR: Final = {"x86_64": 315, "aarch64": 275}
_SPIN: Final = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


@contextmanager
def spinning() -> Iterator[int]:
    """A process that always wants the CPU, in a session of its own."""
    cpu = str(min(os.sched_getaffinity(0)))
    words = [sys.executable, "-c", _SPIN, cpu]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def ticks(pid: int) -> int:
    """Of the CPU that a process had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.skipif(os.geteuid() != 0, reason="of others the kernel takes one write to autogroup in 0.1 s")
def test_beside_another_session_it_gets_less() -> None:
    """A quarter where it is the weight that decides (335 of 335 + 1024); half without it."""
    with spinning() as production, spinning() as ours:
        for pid in (production, ours):  # whatever the tests run at
            os.setpriority(os.PRIO_PROCESS, pid, 0)
        give_way(5, ours)
        before = ticks(production), ticks(ours)
        end = time.monotonic() + 30
        while time.monotonic() < end and ticks(production) + ticks(ours) < sum(before) + 150:
            time.sleep(0.1)
        its, mine = ticks(production) - before[0], ticks(ours) - before[1]
        assert its > 1.8 * mine


def test_the_slices_are_the_longest() -> None:
    if platform.machine() not in _SCHED_GETATTR:
        pytest.skip("no number of sched_getattr(2) for this machine")
    with spinning() as pid:
        give_way(19, pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        attributes = (ctypes.c_uint64 * 6)()
        assert ctypes.CDLL(None).syscall(_SCHED_GETATTR[platform.machine()], pid, attributes, 48, 0) == 0
        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        assert attributes[3] == (LONGEST if release >= (6, 12) else 0)


def test_who_is_nicer_stays_so_and_a_batch_process_stays_one() -> None:
    with spinning() as pid:
        os.setpriority(os.PRIO_PROCESS, pid, 12)
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
        give_way(5, pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 12
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH


def test_of_a_process_that_is_gone_it_is_told() -> None:
    with spinning() as pid:
        pass
    with pytest.raises(ProcessLookupError):
        give_way(5, pid)
