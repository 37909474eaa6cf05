# SPDX-License-Identifier: Apache-2.0
"""One worker process, as the supervisor has it: its start, questions to it, its end."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tapmirror import privsep
from tapmirror.worker import MESSAGE, STATE_BYTES, Setup

READY_TIME: Final = 20.0
"""Seconds for a worker to start: Python's imports on a busy host."""
REPLY_TIME: Final = 5.0
"""Seconds for a worker to answer; it looks at its control socket in every turn of its loop."""


class TapError(Exception):
    """The tap cannot be started or went wrong; the message is one line for the user."""


class WorkerProcess:
    """A worker and our end of its control socket.

    Start one with `started`; it is ours until `close`.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def started(cls, setup: Setup, fds: Sequence[int]) -> WorkerProcess:
        """A worker that mirrors.  The descriptors stay the caller's.  Raises OSError, `TapError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tapmirror.worker", str(theirs.fileno())],
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        worker = cls(process, ours)
        try:
            privsep.send_large(ours, msgspec.to_builtins(setup), fds)
            worker.receive("ready", READY_TIME)
        except BaseException:
            worker.close(REPLY_TIME)
            raise
        return worker

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def fileno(self) -> int:
        """Becomes readable when the worker dies."""
        return self._control.fileno()

    def ask(self, request: dict[str, Any], answer: str, wait: float) -> dict[str, Any]:
        """Send a request; its answer.  Raises `TapError` if the worker is gone or takes over `wait` seconds."""
        try:
            privsep.send(self._control, request)
        except OSError:
            raise self._gone() from None
        return self.receive(answer, wait)

    def receive(self, answer: str, wait: float) -> dict[str, Any]:
        """Wait for a message that has the field `answer`; its value.  Raises as `ask` does."""
        end = time.monotonic() + wait
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            while selector.select(max(0.0, end - time.monotonic())):
                try:
                    message = privsep.receive_any(self._control, MESSAGE, STATE_BYTES)
                except (OSError, EOFError):
                    raise self._gone() from None
                if "error" in message:
                    raise TapError(str(message["error"]))
                if answer in message:
                    found = message[answer]
                    return found if isinstance(found, dict) else {}
        self._process.kill()  # it hangs, and would not drain either
        raise TapError(f"the worker process did not answer within {wait:.0f} s")

    def close(self, wait: float) -> None:
        """Let it drain and go, for `wait` seconds at most; it is gone then."""
        self._control.close()
        try:
            self._process.wait(wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> TapError:
        try:
            code = self._process.wait(1.0)
            status = f"signal {-code}" if code < 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            status = "it hangs"
        return TapError(f"the worker process ended ({status}); the tap is detached")
