# SPDX-License-Identifier: Apache-2.0
"""A child that is started while a signal comes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from signalled import Ended, met_by_a_signal
from tapmirror import spawn
from tapmirror.spawn import HELD, LOOK, how_ended, unsignalled


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that came to us; the actions are put back."""
    found: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        found.append(number)

    before = {number: signal.signal(number, handle) for number in HELD}
    yield found
    for number, action in before.items():
        signal.signal(number, action)


@pytest.mark.parametrize("number", sorted(HELD))
def test_a_signal_waits_and_comes_afterwards(heard: list[int], number: int) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with unsignalled():
        signal.pthread_kill(threading.get_ident(), number)  # of several threads another would take the process's
        assert heard == []
    assert heard == [number]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize("number", sorted(HELD))
def test_a_child_does_not_die_of_one_before_it_runs(number: int) -> None:
    program = f"import os; os.kill(os.getpid(), {int(number)}); print('alive')"
    with unsignalled():
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


@pytest.mark.parametrize("number", sorted(HELD))
def test_a_child_does_not_outlive_the_exception_of_a_signal(number: int) -> None:
    """Not even one that stands still, and so does not see that its control socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, met_by_a_signal(number) as begun:
        with pytest.raises(Ended):
            spawn.start("tapmirror.worker", theirs)
        assert theirs.fileno() == -1
        assert [child.returncode for child in begun] == [-signal.SIGKILL]


@pytest.mark.parametrize("module", ["tapmirror.loader", "tapmirror.worker"])
def test_sigterm_ends_a_child_all_the_same(module: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        child = spawn.start(module, theirs)
        try:
            child.terminate()
            assert child.wait(60.0) == -signal.SIGTERM
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize(
    ("code", "more", "told"),
    [
        (0, {}, "exit status 0"),
        (3, {}, "exit status 3"),
        (-signal.SIGTERM, {}, "signal 15"),
        (-signal.SIGKILL, {}, f"signal 9, most likely for want of memory: {LOOK}"),
        (
            -signal.SIGKILL,
            {"needs": "much"},
            f"signal 9, most likely for want of memory: much; {LOOK}",
        ),
        (-signal.SIGKILL, {"by_us": True, "needs": "much"}, "signal 9"),
    ],
)
def test_how_a_child_ended(code: int, more: dict[str, Any], told: str) -> None:
    assert how_ended(code, **more) == told
