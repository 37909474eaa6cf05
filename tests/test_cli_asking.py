# SPDX-License-Identifier: Apache-2.0
"""Asking the daemon from the command line: where it is, what a shell completes, what is told without one."""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from runner import CliRunner
from tapmirror.cli import asking, status
from tapmirror.cli.main import main
from tapmirror.control.client import ControlError
from test_cli_status import DAEMON, LEDGER, TAP


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


def test_of_several_problems_each_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        asking.refused(ControlError("refused", "a.yaml:1: x (and 1 more)", ("a.yaml:1: x", "a.yaml:2: y")))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tapmirror: error: a.yaml:1: x\ntapmirror: error: a.yaml:2: y\n"


def test_without_a_daemon_it_is_one_line(tmp_path: Path) -> None:
    for words in (["list"], ["status"], ["logs", "web"], ["stop", "web"], ["reload"]):
        done = CliRunner().invoke(main, [*words, "--socket", str(tmp_path / "none")])
        assert done.exit_code == 2
        assert done.output.startswith("tapmirror: error: no daemon at ") and done.output.count("\n") == 1


WHOLE = {**LEDGER, **{name: {**LEDGER[name], "unaccounted": 0} for name in ("segments", "bytes", "requests")}}
PLAN = {"plan": [{"name": "web", "action": "add", "fields": []}], "failed": {"web": "no such interface"}}
REPLIES: dict[str, tuple[list[str], Any]] = {
    "list": (["list"], {"taps": [TAP]}),
    "status": (["status"], {"daemon": DAEMON, "taps": [TAP]}),
    "logs": (["logs", "web"], {"lines": [{"time": 0.0, "level": "info", "text": "hello"}], "next": 1}),
    "start": (["start", "--iface=x", "--port=1", "--shadow=y:1"], {"started": ["web"]}),
    "stop": (["stop", "web"], {"stopped": [{"name": "web", "ledger": WHOLE}]}),
    "reload": (["reload"], PLAN),
    "set": (["set", "web", "percent=5"], {"name": "web", "percent": 5.0}),
}
"""What daemons answer to commands."""


def altered(reply: Any) -> Iterator[tuple[str, Any]]:
    """The reply without each of its fields (`Client` looks for the outermost), and with null there."""
    places: list[tuple[Any, ...]] = [()]
    for place in places:
        found = at(reply, place)
        keys = list(found) if isinstance(found, Mapping) else range(len(found)) if isinstance(found, list) else ()
        places += [(*place, key) for key in keys]
        for change in ("without", "null at")[len(place) < 2 :] if place else ():
            other = copy.deepcopy(reply)
            around = at(other, place[:-1])
            if change == "without":
                del around[place[-1]]
            else:
                around[place[-1]] = None
            yield f"{change} {place}", other


def at(reply: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        reply = reply[key]
    return reply


@pytest.mark.parametrize("op", REPLIES)
def test_a_reply_of_another_version_is_a_line(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, reply = REPLIES[op]
    unread = 0
    for what, other in [("as it is", reply), *altered(reply)]:
        said = Once(other)
        monkeypatch.setattr(asking, "Client", said)
        monkeypatch.setattr(status, "Client", said)
        done = CliRunner().invoke(main, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), (what, done.exception)
        if "of another version" in done.stderr:
            unread += 1
            assert done.exit_code == 2 and done.stderr.count("\n") == 1 and done.stdout == "", what
    assert unread


class Once:
    """In the place of a client: it answers so."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    def __call__(self, *_: object) -> Once:
        return self

    def __enter__(self) -> Once:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def ask(self, *_: object) -> Any:
        return self._reply


def test_ctrl_c_says_that_the_daemon_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Once):
        def ask(self, *_: object) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(asking, "Client", Interrupted({}))
    done = CliRunner().invoke(main, ["pause", "web"])
    assert done.exit_code == 130 and done.stderr.startswith("tapmirror: error: interrupted: the daemon continues")
    assert "continues" not in CliRunner().invoke(main, ["list"]).stderr


def test_what_is_no_field_of_a_reply_is_not_read() -> None:
    for wrong, words in (("{}['shadows']", "has no 'shadows'"), ("format('x', ',')", "cannot be read")):
        with pytest.raises(ControlError, match=f"response {words}") as caught, asking.understood():
            eval(wrong)
        assert caught.value.code == "version"


def test_what_cannot_be_read_may_be_our_own_fault_and_says_where() -> None:
    """Nothing in a reply tells one from the other."""
    with pytest.raises(ControlError) as caught, asking.understood():
        status.log_line({"time": "noon", "level": "info", "text": "hello"})
    assert "of another version, or this is a fault of tapmirror " in str(caught.value)
    assert re.search(r"in \w+\.py:\d+$", str(caught.value))
    assert isinstance(caught.value.__cause__, TypeError)


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
