# SPDX-License-Identifier: Apache-2.0
"""The service manager's protocol, over a real socket as systemd has it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapmirror.supervisor.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket like the service manager's, and what it is called in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@tapmirror-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(60)
        yield sock, name


def test_what_is_said(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("2 taps run;\n  none\tis lost")
    notifier.status("2 taps run; none is lost")  # the same once more is not sent
    notifier.alive()
    notifier.stopping()
    notifier.status("x" * 10_000)
    said = [sock.recv(4096) for _ in range(4)]
    assert said == [b"READY=1", b"STATUS=2 taps run; none is lost", b"WATCHDOG=1", b"STOPPING=1"]
    assert sock.recv(4096) == b"STATUS=" + b"x" * 512


def test_a_reload_has_its_time(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    before = time.monotonic_ns() // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    first, second = sock.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_children_do_not_inherit_it() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier(environ)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_in_half_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog == seconds


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "relative"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert not notifier.address
    notifier.ready()


def test_a_manager_that_does_not_read_holds_nobody(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for _ in range(10_000):
        notifier.alive()
    assert sock.recv(64) == b"WATCHDOG=1"


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nothing")}).ready()
