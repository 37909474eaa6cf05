# SPDX-License-Identifier: Apache-2.0
"""A server that never stops to answer, as fast as it is listened to.

As a command it is the server: in a process of its own, that of the tests has other things to do.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lab.hosts import Host, LabError

PIECE: Final = 1 << 20


class Endless:
    """A server on a host.  To the first data of each connection it answers `start`, and then `again` and again, until
    it has sent `most` bytes on all of them.
    """

    def __init__(self, host: Host, port: int, start: bytes, again: bytes, most: int) -> None:
        self._host = host
        self._process = host.popen(
            [sys.executable, "-c", "from lab.scenarios.endless import main; main()"],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([port, start.decode("latin-1"), again.decode("latin-1"), most]))
        self._process.stdin.close()
        if self._process.stdout.readline() != "ready\n":
            raise LabError("the server did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.stop(self._process, signal.SIGKILL)

    def running(self) -> bool:
        """Whether there is something left to send."""
        return self._process.poll() is None

    def sent(self) -> int:
        """End it; how many bytes it sent."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def main() -> None:
    """Serve until all is sent, or SIGTERM; then print how much it was."""
    port, start, again, most = json.load(sys.stdin)
    begin = start.encode("latin-1")
    piece = again.encode("latin-1") * (PIECE // len(again) + 1)
    over = threading.Event()
    counts: list[int] = []

    def response(sock: socket.socket) -> None:
        number = len(counts)
        counts.append(0)
        with contextlib.suppress(OSError), sock:
            sock.recv(1 << 16)
            sock.sendall(begin)
            while sum(counts) < most:
                counts[number] += sock.send(piece)
            over.set()

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=response, args=(sock,), daemon=True).start()

    listener = socket.create_server(("", port))
    threading.Thread(target=accept, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    print("ready", flush=True)
    over.wait()
    print(sum(counts), flush=True)
