# SPDX-License-Identifier: Apache-2.0
"""Starting a child process beside a terminal whose Ctrl-C is not for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
"""What a terminal sends to its foreground process group (termios(3))."""


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
