# SPDX-License-Identifier: Apache-2.0
"""The command's end of the socket: whatever is or is not at the other end, one line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import PATIENCE
from tapmirror.control.client import Client, ControlError, NoDaemonError
from tapmirror.control.messages import MAX_REPORT, List


def answered(path: Path, talk: Callable[[socket.socket], None]) -> threading.Thread:
    """A daemon that answers one client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            assert sock.recv(1000).endswith(b"\n")
            talk(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(NoDaemonError, match="start it with"):
        Client(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        with pytest.raises(NoDaemonError, match="no daemon at"):
            Client(path)
    with pytest.raises(NoDaemonError, match="too long"):
        Client(tmp_path / ("x" * 200))


def test_a_daemon_whose_backlog_is_full(tmp_path: Path) -> None:
    """It takes a connection when it has time again; if not, that is told."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        stack.enter_context(Client(path))
        with pytest.raises(NoDaemonError, match="takes no more connections at present"):
            Client(path, 0.2)
        later = threading.Timer(0.2, lambda: stack.enter_context(listener.accept()[0]))
        later.start()
        with Client(path, 10.0):
            later.join()


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (b"", "lost", "the daemon closed the connection"),
        (b"half", "lost", "the daemon closed the connection"),
        (b"rubbish\n", "bad_request", "not a response"),
        (
            b'{"v":1,"id":1,"ok":{"more":1}}\n',
            "version",
            "the daemon's response has no 'taps': it is of another version",
        ),
        (b'{"v":1,"id":1,"error":{"code":"busy","message":"wait"}}\n', "busy", "wait"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, reply: bytes, code: str, words: str) -> None:
    thread = answered(tmp_path / "s", lambda sock: sock.sendall(reply))
    with Client(tmp_path / "s") as client, pytest.raises(ControlError, match=words) as caught:
        client.ask(List())
    assert caught.value.code == code
    thread.join()


def test_why_it_was_turned_away_is_told(tmp_path: Path) -> None:
    """By a daemon that reads nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with Client(tmp_path / "s") as client:
            with listener.accept()[0] as sock:
                sock.sendall(b'{"v":1,"error":{"code":"busy","message":"too many"}}\n')
            with pytest.raises(ControlError, match="too many") as caught:
                client.ask(List())
    assert caught.value.code == "busy"


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    def wait(event: threading.Event) -> None:
        event.wait(PATIENCE)

    done = threading.Event()
    thread = answered(tmp_path / "s", lambda _: wait(done))
    with Client(tmp_path / "s") as client, pytest.raises(ControlError, match=r"did not answer within 0\.1 s"):
        client.ask(List(), 0.1)
    done.set()
    thread.join()


def test_a_descriptor_that_nobody_asked_for_is_closed(tmp_path: Path) -> None:
    def talk(sock: socket.socket) -> None:
        with open(tmp_path / "unasked", "wb") as file:
            socket.send_fds(sock, [b'{"v":1,"id":1,"ok":{"taps":[]}}\n'], [file.fileno()])

    thread = answered(tmp_path / "s", talk)
    with Client(tmp_path / "s") as client:
        assert client.ask(List()) == {"taps": []}
    thread.join()
    open_files = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    assert not [name for name in open_files if name.endswith("unasked")]


@pytest.mark.parametrize("size", [0, -1, MAX_REPORT + 1, "x"])
def test_a_report_without_its_bytes_is_none(tmp_path: Path, size: object) -> None:
    def talk(sock: socket.socket) -> None:
        with open(tmp_path / "empty", "w+b") as file:
            socket.send_fds(
                sock,
                [json.dumps({"v": 1, "id": 1, "ok": {"tap": "web", "compare": {}, "bytes": size}}).encode() + b"\n"],
                [file.fileno()],
            )

    thread = answered(tmp_path / "s", talk)
    with Client(tmp_path / "s") as client, pytest.raises(ControlError, match="has no report with it"):
        client.report("web")
    thread.join()
