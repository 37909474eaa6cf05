# SPDX-License-Identifier: Apache-2.0
"""The daemon's control socket: who may do what over it, what it tells, and what hostile clients achieve."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import stat
import time
from pathlib import Path

import pytest

from documented import fields, named, rows
from e2e.mirror import PATIENCE
from e2e.served import SHADOW, WEB, state_of, under_load, web
from lab import (
    HashSink,
    Lab,
    LabError,
    identity,
    load,
    until,
)
from lab.daemon import Daemon
from lab.shop import REVIEWS_V2, Shop
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import List, Logs, Pause, Set, Start, Stop
from tapmirror.control.server import HALF_TIME
from tapmirror.spec import Compare, Level, Protocol, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def test_hostile_clients_change_nothing_of_the_mirroring(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, under_load(lab, rate=1000) as (_production, shadow, running):
        daemon.ask(Start(taps=[web()]))
        assert stat.S_IMODE(daemon.runtime.stat().st_mode) == 0o750
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660 and daemon.socket.stat().st_gid == 0
        shadow.wait_for(100, PATIENCE)
        resident = rss(daemon.pid)
        with contextlib.ExitStack() as stack:
            half = connect(daemon.socket, stack)
            half.sendall(b'{"v":1,"op":"sta')
            slow = connect(daemon.socket, stack)
            slow.setblocking(False)
            slow.send(b'{"v":1,"op":"status"}\n' * 4_000)  # and reads nothing
            for _ in range(1000):
                connect(daemon.socket, stack)
            huge = connect(daemon.socket, stack)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_gigabyte(huge)
            began = time.monotonic()
            assert daemon.ask(List())["taps"][0]["state"] == "running"
            assert time.monotonic() - began < HALF_TIME, "the time that one client is given"
            assert rss(daemon.pid) - resident < 64 << 10
        result = running.stop()
        assert result.failed == 0
        (stopped,) = daemon.ask(Stop(name="web"))["stopped"]
        identity(stopped["ledger"])
        requests = stopped["ledger"]["requests"]
        assert requests["dropped"] == {} and requests["mirrored"] == len(shadow.got)


def connect(path: Path, stack: contextlib.ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    return sock


def send_gigabyte(sock: socket.socket) -> None:
    for _ in range(1 << 14):
        sock.sendall(b"x" * (1 << 16))


def rss(pid: int) -> int:
    """Resident memory of a process in KiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def test_something_else_in_the_place_of_the_socket(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon:
        daemon.runtime.mkdir(mode=0o750)
        victim = daemon.top / "victim"
        victim.write_text("precious")
        daemon.socket.symlink_to(victim)
        with pytest.raises(LabError, match=r"(?s)status 2.*exists and is not a socket"):
            daemon.start()
        assert victim.read_text() == "precious" and daemon.socket.is_symlink()
        daemon.socket.unlink()
        daemon.runtime.chmod(0o777)
        with pytest.raises(LabError, match=r"(?s)status 2.*can write to it"):
            daemon.start()


def test_who_may_only_look(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        daemon.socket.chmod(0o666)
        # the repository, as the daemon's files, may be where only root can look: it is the socket's mode that counts
        reader = ("setpriv", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        other = (*reader, "--reuid=4001", "--regid=4001", "--")
        done = lab.node.run([*other, *daemon.command("list")], env=daemon.environment())
        assert "web" in done.stdout
        done = lab.node.run([*other, *daemon.command("stop", "--all")], env=daemon.environment(), check=False)
        assert done.returncode == 2 and "only root and members of the group" in done.stderr
        daemon.socket.chmod(0o600)
        done = lab.node.run([*other, *daemon.command("list")], env=daemon.environment(), check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "permission denied: be root, or in the group tapmirror" in done.stderr
        daemon.socket.chmod(0o666)
        worker = (*reader, "--reuid=nobody", "--regid=nogroup", "--")
        done = lab.node.run([*worker, *daemon.command("list")], env=daemon.environment(), check=False)
        line = "tapmirror: error: the user that workers run as may ask for nothing\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
        assert state_of(daemon) == "running"
        denied = re.compile(r"event=denied msg=\"may only look\" user=4001 uid=4001 pid=\d+ op=stop all=True")
        until(lambda: bool(denied.search(daemon.said())), "the line of what was denied")


def test_no_change_hides_among_attempts(lab: Lab) -> None:
    """Of each cause there are ten lines a second: who asks for nonsense all the time has none held back but of that."""
    with HashSink(lab.shadow), Daemon(lab.node) as daemon, Client(daemon.socket) as client:
        daemon.run(*WEB)
        for _ in range(500):
            with pytest.raises(ControlError):
                client.ask(Pause(name="nonsense"))
        client.ask(Set(name="web", percent=3))
        client.ask(Stop(name="web"))
        until(lambda: "op=stop name=web" in daemon.said(), "the line of the last change")
        assert "msg=done user=root uid=0" in daemon.said() and "op=set name=web percent=3.0" in daemon.said()
        assert daemon.said().count("name=nonsense") < 400


def test_every_field_of_list_and_status_is_documented(lab: Lab) -> None:
    two = (parse_shadow(SHADOW), parse_shadow("10.77.2.2:81"))
    with Daemon(lab.node) as daemon, under_load(lab), HashSink(lab.shadow, port=81):
        daemon.ask(Start(taps=[web(shadows=two, ttl=600.0, compare=Compare(level=Level.STATUS))]))
        until(lambda: "breaker" in daemon.run("status", "--json").stdout, "a ledger", PATIENCE)
        listed, status = (json.loads(daemon.run(command, "--json").stdout) for command in ("list", "status"))
        ledger = status["taps"][0].pop("ledger")
    assert fields(ledger) - named("The ledger") == set()
    assert rows("The ledger") - fields(ledger) == {"comparison"}, "of the last one"
    assert fields(listed) | fields(status) <= named("`list` and `status`") | {"taps", "daemon"}
    assert rows("`list` and `status`") - fields(status["taps"]) == {"ledger"}


def test_requests_by_hand(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, contextlib.ExitStack() as stack:
        sock = connect(daemon.socket, stack)
        sock.sendall(b'{"v":1,"id":"a","op":"list"}\n{"v":3,"id":"b","op":"list"}\n')
        replies = stack.enter_context(sock.makefile())
        assert json.loads(replies.readline()) == {"v": 1, "id": "a", "ok": {"taps": []}}
        assert json.loads(replies.readline())["error"]["code"] == "version"
        for request, code in [(Pause(name="x"), "not_found"), (Logs(name="x"), "not_found"), (Stop(), "bad_request")]:
            with pytest.raises(ControlError) as caught:
                daemon.ask(request)
            assert caught.value.code == code


def test_a_running_tap_is_reported_and_judged_through_the_socket(lab: Lab, tmp_path: Path) -> None:
    """In every form, of two workers together, as often as one likes, and by nobody who may not."""
    with Shop(lab.node), Shop(lab.shadow, reviews=REVIEWS_V2), Daemon(lab.node) as daemon:
        most = 1e5  # a second: all of them, also where they come at once to a worker that was held up
        compare = Compare(level=Level.BODY, noise_probe=20.0, max_exchanges=most, max_bodies=most)
        daemon.ask(Start(taps=[web(protocol=Protocol.HTTP, compare=compare, workers=2, loop_check=False)]))
        load(lab.client, lab.node.addr4, requests=600, paths=("/reviews/", "/page/"), rate=300, connections=8)

        def compared() -> tuple[int, int]:
            figures = json.loads(daemon.run("report", "web", "--format=json").stdout)
            assert (figures["tap"], figures["shadow"], figures["level"]) == ("web", SHADOW, "body")
            return figures["paired"], figures["all"]["differing"]

        # The second copies, which show what is noise, come later.
        until(lambda: compared() == (600, 300), "all to be paired and judged", PATIENCE)
        for form, start in (("terminal", "web: "), ("markdown", "## web"), ("html", "<!DOCTYPE html>")):
            text = daemon.run("report", "web", f"--format={form}").stdout
            assert text.startswith(start)
            assert "rating" in text
        done = daemon.run("verdict", "web", check=1)
        assert "difference rate 50" in done.stdout
        daemon.run("verdict", "web", "--max-diff-rate=none", "--max-p99-ratio=none", "--max-error-diff=50%")
        assert "no tap has the name 'other'" in daemon.run("report", "other", check=2).output
        until(lambda: "op=report name=web" in daemon.said(), "the line")  # who looked at samples of traffic is told
        daemon.run("stop", "web")
