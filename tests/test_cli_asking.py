# SPDX-License-Identifier: Apache-2.0
"""Asking the daemon from the command line: where it is, what a shell completes, what is told without one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tapmirror.cli import asking
from tapmirror.cli.main import main


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """A daemon that answers every request with two taps, until the test is over."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    taps = [{"name": name, "iface": "eth0", "shadows": ["a:1", "b:2"]} for name in ("web", "worker")]

    def serve() -> None:
        while True:
            with listener.accept()[0] as sock:
                line = sock.recv(1000)
                if not line:
                    return
                sock.sendall(json.dumps({"v": 1, "id": 1, "ok": {"taps": taps}}).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield path
    with socket.socket(socket.AF_UNIX) as last:
        last.connect(str(path))
    thread.join()
    listener.close()


def completed(socket_: Path, incomplete: str) -> list[tuple[str, Any]]:
    context = click.Context(main)
    context.params["socket"] = socket_
    found = asking.complete(context, click.Argument(["name"]), incomplete)
    return [(item.value, item.help) for item in found]


def test_names_are_completed_from_the_daemon(daemon: Path) -> None:
    assert completed(daemon, "w") == [("web", "eth0 -> a:1, b:2"), ("worker", "eth0 -> a:1, b:2")]
    assert completed(daemon, "wo") == [("worker", "eth0 -> a:1, b:2")]
    assert completed(daemon.with_name("none"), "w") == []


def test_the_socket_comes_from_the_option_or_the_environment(daemon: Path) -> None:
    for words, env in ((["--socket", str(daemon)], {}), ([], {"TAPMIRROR_SOCKET": str(daemon)})):
        done = CliRunner().invoke(main, ["list", "--json", *words], env=env)
        assert [tap["name"] for tap in json.loads(done.output)["taps"]] == ["web", "worker"]


def test_without_a_daemon_it_is_one_line(tmp_path: Path) -> None:
    for words in (["list"], ["status"], ["logs", "web"], ["stop", "web"], ["reload"]):
        done = CliRunner().invoke(main, [*words, "--socket", str(tmp_path / "none")])
        assert done.exit_code == 2
        assert done.output.startswith("tapmirror: error: no daemon at ") and done.output.count("\n") == 1


def test_a_warning_is_told_beside_what_was_done(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(1000)
            done = {"name": "web", "warning": "the taps could not be written: No space left on device"}
            sock.sendall(json.dumps({"v": 1, "id": 1, "ok": done}).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    done = CliRunner().invoke(main, ["pause", "web", f"--socket={tmp_path / 's'}"])
    thread.join()
    assert (done.exit_code, done.stdout) == (0, "paused: web\n")
    assert done.stderr == "tapmirror: warning: the taps could not be written: No space left on device\n"
