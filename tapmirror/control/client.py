# SPDX-License-Identifier: Apache-2.0
"""The client's end of the control socket: ask, and wait for the reply."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from tapmirror.control.messages import (
    MAX_REPLY,
    MAX_REPORT,
    Lines,
    ProtocolError,
    Report,
    Request,
    read_reply,
    write_request,
)

PATIENCE: Final = 120.0
"""Seconds to wait for a reply: a start compiles a program and may wait for names to be resolved."""
CONNECT_TIME: Final = 5.0
SOCKET: Final = "control.sock"
"""Name of the control socket in the runtime directory."""


class ControlError(Exception):
    """The daemon refused, or did not answer; the message is one line for the user."""

    def __init__(self, code: str, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        """One of the codes of `ProtocolError`, or `lost`, or `no_daemon`."""
        self.problems = problems
        """A line for each, where there are several."""


class NoDaemonError(ControlError):
    """There is no daemon to ask."""

    def __init__(self, message: str) -> None:
        super().__init__("no_daemon", message)


class Client:
    """A connection to the daemon.  Raises `NoDaemonError` if there is no daemon, or no permission."""

    def __init__(self, path: Path, connect_time: float = CONNECT_TIME) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(connect_time)
        self._id = 0
        end = time.monotonic() + connect_time
        while True:
            try:
                self._sock.connect(os.fspath(path))
                return
            except BlockingIOError:  # its backlog is full
                if time.monotonic() > end:
                    self._sock.close()
                    raise NoDaemonError(f"{path}: the daemon takes no more connections at present") from None
                time.sleep(0.02)
            except OSError as error:
                self._sock.close()
                raise NoDaemonError(_why(path, error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, request: Request, patience: float = PATIENCE) -> dict[str, Any]:
        """Send a request and return the daemon's reply.  Raises `ControlError`."""
        reply, descriptors = self._exchange(request, patience)
        for descriptor in descriptors:
            os.close(descriptor)
        return reply

    def report(self, name: str, patience: float = PATIENCE) -> tuple[dict[str, Any], bytes]:
        """The reply to `Report`, and the JSON that comes with it.  Raises `ControlError`."""
        reply, descriptors = self._exchange(Report(name=name), patience)
        try:
            size = reply.get("bytes")
            if len(descriptors) != 1 or not isinstance(size, int) or not 0 < size <= MAX_REPORT:
                raise ControlError("lost", "the daemon's response has no report with it")
            with open(descriptors[0], "rb", closefd=False) as file:
                return reply, os.pread(file.fileno(), size, 0)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _exchange(self, request: Request, patience: float) -> tuple[dict[str, Any], list[int]]:
        """The daemon's reply, and the descriptors that came with it, which become the caller's."""
        descriptors: list[int] = []
        try:
            return self._reply(request, patience, descriptors), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _reply(self, request: Request, patience: float, descriptors: list[int]) -> dict[str, Any]:
        self._id += 1
        self._sock.settimeout(patience)
        lines = Lines(MAX_REPLY)
        try:
            with suppress(BrokenPipeError):  # why it was turned away can be read all the same
                self._sock.sendall(write_request(msgspec.structs.replace(request, id=self._id)))
            while (line := lines.next()) is None:
                data, found, _, _ = socket.recv_fds(self._sock, 1 << 16, 1)
                descriptors += found
                if not data:
                    raise ControlError("lost", "the daemon closed the connection")
                lines.feed(data)
            reply = read_reply(line)
            missing = next((name for name in request.reply if name not in reply), None)
            if missing is not None:
                raise ProtocolError("version", f"the daemon's response has no {missing!r}: it is of another version")
            return reply
        except ProtocolError as error:
            raise ControlError(error.code, str(error), error.problems) from None
        except TimeoutError:
            raise ControlError("lost", f"the daemon did not answer within {patience:g} s") from None
        except OSError as error:
            raise ControlError("lost", f"the connection to the daemon broke: {error.strerror}") from None


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: permission denied: be root, or in the group tapmirror"
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"no daemon at {path}: start it with `systemctl start tapmirror` or `tapmirror daemon`"
    return f"{path}: {error.strerror or error}"
