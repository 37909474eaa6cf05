# SPDX-License-Identifier: Apache-2.0
"""Starting a child process that no signal finds half started, and how its end is told."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tapmirror import contract

TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
"""What a terminal sends to its foreground process group (termios(3))."""
HELD: Final = TERMINAL | {signal.SIGTERM}
"""What may end us at any line."""
LOOK: Final = "look at the service's MemoryMax=, and for oom in dmesg"


@contextmanager
def unsignalled() -> Iterator[None]:
    """Hold back `HELD` for this thread, and for a child that is started meanwhile until it says otherwise.

    A child is in the terminal's process group until it has a session of its own, and `subprocess` gives it the default
    actions before that.  So a Ctrl-C in between would kill the child before any of its code runs.  We get the signal
    afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(module: str, control: socket.socket, output: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE FD CONTRACT`, in a session of its own; `control` is its end of a socket pair, and closed.

    The module is to call `accept_sigterm` first.  An exception that a signal's handler raises comes when there is a
    child that can be ended, and it is: within `subprocess` it would leave one that nobody knows.  Raises OSError.
    """
    child = None
    try:
        with control, unsignalled():
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(control.fileno()), contract.CONTRACT],
                cwd="/",
                pass_fds=[control.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except BaseException:
        if child is not None:
            child.kill()
            child.wait()
        raise
    return child


def accept_sigterm() -> None:
    """In a child that `start` began: SIGTERM ends it from now on, also one that has come already."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def how_ended(code: int, *, by_us: bool = False, needs: str = "") -> str:
    """How a child ended, for people, by the code of `subprocess`.

    A SIGKILL that is not ours (`by_us`) usually comes from the kernel, for lack of memory: `needs` says for what the
    child takes memory.
    """
    if code >= 0:
        return f"exit status {code}"
    if code != -signal.SIGKILL or by_us:
        return f"signal {-code}"
    return f"signal {-code}, most likely for want of memory: {needs and f'{needs}; '}{LOOK}"
