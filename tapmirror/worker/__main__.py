# SPDX-License-Identifier: Apache-2.0
"""The command `python -m tapmirror.worker FD CONTRACT`."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Final, NoReturn

import msgspec

from tapmirror import contract, privsep, stdio
from tapmirror.spawn import accept_sigterm
from tapmirror.worker.assembly import prepare
from tapmirror.worker.setup import Setup, SetupError, memory_limit

SETUP_BYTES: Final = 16 << 20
"""Most bytes of the first message: enough for a spec from 256 KiB of YAML with all defaults written out."""


def main() -> None:
    """Set up, give up privileges, serve."""
    accept_sigterm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdio.print_without_waiting()
    control = socket.socket(fileno=int(sys.argv[1]))
    reason = contract.broken("".join(sys.argv[2:3]))
    if reason is not None:
        with suppress(OSError):
            privsep.send(control, {"error": reason})
        return
    try:
        message, fds = privsep.receive_large(control, SETUP_BYTES)
    except (OSError, EOFError):
        return  # the supervisor is gone
    setup = msgspec.convert(message, Setup)
    try:
        worker = prepare(setup, fds)
    except SetupError as error:
        privsep.send(control, {"error": str(error)})
        return
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    gc.collect()
    gc.freeze()
    try:
        privsep.send(control, {"ready": os.getpid()})
    except OSError:
        return
    try:
        worker.serve(control)
    except MemoryError:
        _say_that_memory_is_out(control, memory_limit(setup.spec))


def _say_that_memory_is_out(control: socket.socket, limit: int) -> NoReturn:
    """Exit with a line for the supervisor: there may be no memory for more."""
    with suppress(OSError):
        privsep.send(control, {"error": f"limits.memory: the worker needs more than {limit >> 20} MiB"})
    os._exit(1)


if __name__ == "__main__":
    main()
