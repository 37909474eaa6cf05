# SPDX-License-Identifier: Apache-2.0
"""Starting a child process beside a terminal whose Ctrl-C is not for it, and how its end is told."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
"""What a terminal sends to its foreground process group (termios(3))."""
LOOK: Final = "look at the service's MemoryMax=, and for oom in dmesg"


@contextmanager
def unsignalled() -> Iterator[None]:
    """Hold back a terminal's signals for this thread, and for good for a child that is started meanwhile.

    A child is in the terminal's process group until it has a session of its own, and `subprocess` gives it the default
    actions before that: a Ctrl-C in between would kill the child, before a line of it has run.  To us it comes later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_ended(code: int, *, by_us: bool = False, needs: str = "") -> str:
    """How a child ended, for people, by the code of `subprocess`.

    SIGKILL that is not ours (`by_us`) is the kernel's, as a rule: `needs` is what the child takes memory for.
    """
    if code >= 0:
        return f"exit status {code}"
    if code != -signal.SIGKILL or by_us:
        return f"signal {-code}"
    return f"signal {-code}, most likely for want of memory: {needs and f'{needs}; '}{LOOK}"
