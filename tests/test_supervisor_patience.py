# SPDX-License-Identifier: Apache-2.0
"""What counts as waiting for a CPU: of real processes, and of what the kernel tells of one meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import until
from tapmirror.supervisor import patience
from tapmirror.supervisor.patience import Patience, Scheduled

INVISIBLE = """
import os, subprocess, sys, time
from tapmirror.supervisor.patience import Scheduled
child = subprocess.Popen([sys.executable, "-c", "import os; os.setuid(65534); print(flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
scheduled = Scheduled(child.pid)
child.stdout.readline()
print(os.path.exists(f"/proc/{child.pid}/stat"), scheduled.look() is not None)
"""


def process(code: str) -> subprocess.Popen[bytes]:
    """A process that has begun to do this."""
    begun = subprocess.Popen([sys.executable, "-c", f"import os, time\nos.write(1, b'x')\n{code}"], stdout=-1)
    assert begun.stdout is not None and begun.stdout.read(1)
    return begun


@pytest.fixture
def scheduled() -> Iterator[list[Scheduled]]:
    opened: list[Scheduled] = []
    yield opened
    for each in opened:
        each.close()


def starved(running: subprocess.Popen[bytes], scheduled: list[Scheduled], seconds: float) -> float:
    """For how long its clock stands still in that time."""
    scheduled.append(Scheduled(running.pid))
    clock = Patience(scheduled[-1])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        clock.look()
    return clock.starved


def on_cpu(running: subprocess.Popen[bytes]) -> float:
    """Seconds of CPU that a process has had."""
    return int(Path(f"/proc/{running.pid}/schedstat").read_text().split()[0]) / 1e9


@pytest.mark.parametrize("stopped", [False, True])
def test_what_sleeps_or_is_stopped_waits_for_no_cpu(scheduled: list[Scheduled], stopped: bool) -> None:
    with process("time.sleep(60)" if not stopped else "while True: pass") as running:
        if stopped:
            os.kill(running.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        until(lambda: Path(f"/proc/{running.pid}/stat").read_text().split()[2] in "ST", "that it waits for no CPU")
        assert starved(running, scheduled, 1.0) < 0.5
        running.kill()


def test_the_time_on_a_cpu_counts(scheduled: list[Scheduled]) -> None:
    """Of an endless loop on a host that is busy, or not."""
    with process("while True: pass") as running:
        began, before = time.monotonic(), on_cpu(running)
        waited = starved(running, scheduled, 1.0)
        running.send_signal(signal.SIGSTOP)
        assert waited + on_cpu(running) - before < time.monotonic() - began + 0.1
        running.kill()


def test_what_has_no_cpu_waits_for_one(scheduled: list[Scheduled], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {min(os.sched_getaffinity(0))}
    with process("while True: pass") as hog, process("while True: pass") as running:
        os.sched_setaffinity(hog.pid, cpu)
        os.sched_setaffinity(running.pid, cpu)
        os.sched_setscheduler(running.pid, os.SCHED_IDLE, os.sched_param(0))
        assert starved(running, scheduled, 2.0) > 1.4
        monkeypatch.setattr(patience, "LONGEST", 0.5)
        assert starved(running, scheduled, 1.0) == 0.5
        running.kill()
        hog.kill()


RAN = (5_000_000_000, 1_000_000_000, 7)


@pytest.mark.parametrize(
    ("state", "counters", "waited"),
    [
        (b"R", RAN, 2.0),
        (b"R", (5_100_000_000, 2_500_000_000, 8), 1.5),
        (b"R", (5_100_000_000, 9_000_000_000, 8), 2.0),
        (b"R", (7_000_000_000, 1_000_000_000, 7), 0.0),
        (b"S", (5_100_000_000, 1_300_000_000, 9), 0.3),
        (b"S", RAN, 0.0),
        (b"D", RAN, 0.0),
        (b"T", RAN, 0.0),
    ],
    ids=["waits yet", "waited", "since before", "runs", "waited and sleeps", "sleeps", "reclaims pages", "stopped"],
)
def test_what_counts_between_two_looks(state: bytes, counters: tuple[int, int, int], waited: float) -> None:
    before, after = patience._Look(10.0, b"R", RAN), patience._Look(12.0, state, counters)
    assert patience._waited(before, after) == waited


def test_where_the_kernel_does_not_tell_all_time_counts(scheduled: list[Scheduled]) -> None:
    with process("while True: pass") as gone:
        gone.kill()
    assert starved(gone, scheduled, 0.3) == 0.0
    assert scheduled[0].look() is None


def test_where_the_kernel_keeps_no_statistics_all_time_counts(
    scheduled: list[Scheduled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sched_info_on(): without CONFIG_SCHEDSTATS it says `0 0 0` of every process, also of one in an endless loop."""
    stat = b"7 (python3) R 1 7"
    with process("time.sleep(60)") as running:
        scheduled.append(Scheduled(running.pid))
        monkeypatch.setattr(os, "pread", lambda file, *_: stat if file == scheduled[0]._files[0] else b"0 0 0\n")
        assert scheduled[0].look() is None
        running.kill()


@pytest.mark.e2e
def test_a_process_that_has_become_another_users_can_be_looked_at_where_others_are_invisible() -> None:
    """As in the unit: `ProtectProc=invisible`, another group than root's, and no CAP_SYS_PTRACE."""
    limited = 'setpriv --regid 65534 --clear-groups --bounding-set -sys_ptrace -- "$@"'
    inside = f"mount -t proc -o hidepid=invisible proc /proc && exec {limited}"
    command = ["unshare", "--mount", "--", "sh", "-ec", inside, "sh", sys.executable, "-c", INVISIBLE]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False True\n"
