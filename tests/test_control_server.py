# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the socket: who may what, and that no client costs more than its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from lab import PATIENCE, until
from tapmirror.control import server
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import MAX_LOOKING, MAX_MESSAGE, List, Logs, Pause, Report, Request, Status
from tapmirror.control.server import Call, Peer, Server
from tapmirror.supervisor.serve import sealed


class Served:
    """A server in a thread.  It answers `list` at once, `status` when told to, `logs` with as many bytes as asked."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.denied: list[tuple[Peer, Request]] = []
        self.calls: list[Call] = []
        self.options = {"group": "operators", "gid": None, **options}
        self.ready = threading.Event()
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.thread.start()
        self.ready.wait(PATIENCE)
        if self.errors:
            self.thread.join()
            raise self.errors[0]

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.end = asyncio.Event()
        try:
            self.server = Server(self.path, self._serve, lambda *who: self.denied.append(who), **self.options)
        except BaseException as error:
            self.errors.append(error)
            return
        finally:
            self.ready.set()
        while not self.end.is_set():
            self.server.expire(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.end.wait(), 0.02)
        self.server.close()

    def _serve(self, call: Call) -> None:
        self.calls.append(call)
        match call.request:
            case List():
                call.answer({"taps": []})
            case Report(name=name):
                call.answer({"tap": name, "compare": {}, "bytes": len(name)}, sealed(name.encode()))
            case Logs(after=size):
                call.answer({"lines": "x" * size})
            case Pause():
                call.refuse("not_found", "no such tap")

    def do(self, what: Callable[[], object]) -> None:
        """In the server's thread."""
        self.loop.call_soon_threadsafe(what)

    def clients(self) -> int:
        return len(self.server._clients)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.end.set)
        self.thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "s") as running:
        yield running


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.settimeout(PATIENCE)
    return sock


def rest(sock: socket.socket) -> bytes:
    """Until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


def test_requests_are_answered_in_order_each_with_its_id(served: Served) -> None:
    with connect(served.path) as sock, sock.makefile("rb") as replies:
        sock.sendall(b"".join(b'{"v":1,"id":%d,"op":"list"}\n' % i for i in range(1000)))
        assert [json.loads(replies.readline())["id"] for _ in range(1000)] == list(range(1000))
        sock.sendall(b'{"v":1,"id":"x","op":"pause","name":"web"}\n{"v":1,"id":1,"op":"nonsense"}\nrubbish\n')
        assert json.loads(replies.readline())["error"] == {"code": "not_found", "message": "no such tap"}
        assert json.loads(replies.readline())["error"]["code"] == "bad_request"
        assert json.loads(replies.readline())["error"]["code"] == "bad_request"
        assert replies.readline() == b""  # nothing can be said of what follows rubbish


def test_a_descriptor_goes_with_its_reply_and_is_not_kept(served: Served) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Client(served.path) as client:
        reply = {"tap": "web", "compare": {}, "bytes": 3}
        assert client.report("web") == (reply, b"web")
        assert client.ask(Report(name="web")) == reply  # who did not expect it keeps none either
        with connect(served.path) as gone:  # asks, and is gone when the reply is due
            gone.sendall(b'{"v":1,"op":"report","name":"gone"}\n')
        client.ask(List())
        until(lambda: served.clients() == 1, "the other client to be gone")
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor to be left")


def test_what_a_report_is_in_cannot_be_changed() -> None:
    descriptor = sealed(b"text")
    for change in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, 0)):
        with pytest.raises(PermissionError):
            change()
    assert os.pread(descriptor, 10, 0) == b"text"
    os.close(descriptor)


def test_a_reply_may_come_later_and_holds_up_nobody_else(served: Served) -> None:
    with Client(served.path) as client, connect(served.path) as sock, sock.makefile("rb") as replies:
        sock.sendall(b'{"v":1,"id":1,"op":"status"}\n{"v":1,"id":2,"op":"list"}\n')
        assert client.ask(List()) == {"taps": []}
        until(lambda: len(served.calls) == 2, "the call")
        assert len(served.calls) == 2  # the second of that client waits
        (late,) = (call for call in served.calls if isinstance(call.request, Status))
        served.do(lambda: late.answer({"late": True}))
        assert json.loads(replies.readline()) == {"v": 1, "id": 1, "ok": {"late": True}}
        assert json.loads(replies.readline())["id"] == 2


def test_a_client_that_left_while_its_reply_was_due(served: Served) -> None:
    with connect(served.path) as sock:
        sock.sendall(b'{"v":1,"op":"status"}\n')
        until(lambda: bool(served.calls), "the call")
    served.do(lambda: served.calls[0].answer({}))
    until(lambda: served.clients() == 0, "its end")
    with Client(served.path) as client:
        assert client.ask(List()) == {"taps": []}


def test_a_huge_message_is_refused_at_the_bound(served: Served) -> None:
    with connect(served.path) as sock:
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1 << 30:
                sent += sock.send(b"x" * (1 << 16))
        assert MAX_MESSAGE <= sent < MAX_MESSAGE + (4 << 20)
    with connect(served.path) as sock:
        sock.sendall(b"x" * (MAX_MESSAGE + 1))
        assert b"a request longer than 1048576 bytes" in rest(sock)


def test_half_a_message_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HALF_TIME", 0.1)
    with connect(served.path) as sock:
        sock.sendall(b'{"v":1,')
        assert rest(sock) == b""


def test_a_byte_now_and_then_wins_no_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HALF_TIME", 0.3)

    def drip(sock: socket.socket) -> None:
        for _ in range(100):
            sock.sendall(b" ")
            time.sleep(0.05)

    with connect(served.path) as sock, pytest.raises((BrokenPipeError, ConnectionResetError)):
        drip(sock)


def test_the_time_for_a_request_begins_with_its_first_byte(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HALF_TIME", PATIENCE)
    with connect(served.path) as sock:
        until(lambda: bool(served.server._clients), "the connection")
        (client,) = served.server._clients
        client.since -= 2 * PATIENCE
        sock.sendall(b'{"v":1,"id":3,')
        until(lambda: len(client.lines) > 0, "the first bytes")
        served.do(lambda: served.server.expire(time.monotonic()))
        sock.sendall(b'"op":"list"}\n')
        assert json.loads(sock.makefile("rb").readline())["id"] == 3


def test_an_idle_client_is_given_up_and_one_that_waits_is_not(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(served.path) as idle, connect(served.path) as waiting:
        waiting.sendall(b'{"v":1,"id":5,"op":"status"}\n')
        until(lambda: len(served.calls) == 1, "the request")
        monkeypatch.setattr(server, "IDLE_TIME", 0.1)
        assert rest(idle) == b""
        served.do(lambda: served.calls[0].answer({}))
        assert json.loads(waiting.makefile("rb").readline())["id"] == 5


def test_while_a_reply_is_due_nothing_more_is_read(served: Served) -> None:
    with connect(served.path) as sock:
        sock.sendall(b'{"v":1,"id":1,"op":"status"}\n')
        until(lambda: len(served.calls) == 1, "the request")
        sock.sendall(b'{"v":1,"id":2,"op":"list"}\n')
        time.sleep(0.1)
        (client,) = served.server._clients
        assert len(served.calls) == 1 and len(client.lines) == 0
        served.do(lambda: served.calls[0].answer({}))
        lines = sock.makefile("rb")
        assert [json.loads(lines.readline())["id"] for _ in range(2)] == [1, 2]


def test_a_client_that_takes_its_reply_slowly_costs_no_turns(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has longer for it than for the rest of a request; once it has it, its socket is not looked at for room."""
    turns: list[object] = []
    writable = server._Connection.writable
    monkeypatch.setattr(server, "HALF_TIME", 0.1)

    def counted(client: server._Connection) -> None:
        turns.append(client)
        writable(client)

    monkeypatch.setattr(server._Connection, "writable", counted)
    with connect(served.path) as sock:
        sock.sendall(b'{"v":1,"op":"logs","name":"web","after":4000000}\n')
        time.sleep(0.3)
        assert len(sock.makefile("rb").readline()) > 4_000_000
        before = len(turns)
        assert before > 0
        time.sleep(0.1)
        assert len(turns) <= before + 1


def test_a_report_for_a_client_that_left_is_let_go(served: Served) -> None:
    descriptor = sealed(b"x")
    with connect(served.path) as sock:
        sock.sendall(b'{"v":1,"op":"status"}\n')
        until(lambda: len(served.calls) == 1, "the request")
        (client,) = served.server._clients
        served.do(lambda: served.server.drop(client))
        assert rest(sock) == b""
    served.do(lambda: served.calls[0].answer({}, descriptor))
    until(lambda: not os.path.exists(f"/proc/self/fd/{descriptor}"), "its end")


def test_one_that_waits_for_its_reply_gives_way_to_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    with connect(served.path) as one, connect(served.path) as two:
        for sock in (one, two):
            sock.sendall(b'{"v":1,"id":5,"op":"status"}\n')
        until(lambda: len(served.calls) == 2, "the requests")
        with connect(served.path) as third:
            assert b'"busy"' in rest(third)
        for call in served.calls:
            served.do(partial(call.answer, {}))
        assert [json.loads(sock.makefile("rb").readline())["id"] for sock in (one, two)] == [5, 5]


def test_without_a_group_the_socket_is_roots(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("requests", [1, 3])
def test_who_does_not_take_a_reply_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    monkeypatch.setattr(server, "TAKE_TIME", 0.2)
    with connect(served.path) as slow, Client(served.path) as client:
        slow.sendall(b'{"v":1,"op":"logs","name":"web","after":8000000}\n' * requests)
        for _ in range(50):
            assert client.ask(List()) == {"taps": []}
        until(lambda: served.clients() == 1, "the end of the slow one")
        assert len([call for call in served.calls if isinstance(call.request, Logs)]) == 1


def test_a_thousand_clients(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(served.path))
        with Client(served.path) as client:
            assert client.ask(List()) == {"taps": []}
        assert served.clients() <= server.MAX_CLIENTS
    until(lambda: served.clients() == 0, "their end")


def test_unfinished_requests_of_all_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_HELD", 1 << 20)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(served.path)) for _ in range(4)]
        for sock in socks:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b"x" * 500_000)
        until(lambda: served.clients() == 2, "two given up")


def as_other(path: Path, uid: int, groups: str, line: bytes, gid: int | None = None) -> bytes:
    """What another user is answered, whose own group is `gid`; the lines are those of a client of ours."""
    code = (
        "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
        "from contextlib import suppress\nwith suppress(BrokenPipeError): s.sendall(sys.stdin.buffer.read())\n"
        "print(s.makefile('rb').readline().decode())"
    )
    words = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid or uid}",
        *([f"--groups={groups}"] if groups else ["--clear-groups"]),
    ]
    done = subprocess.run(
        [*words, "--", sys.executable, "-c", code, str(path)], input=line, capture_output=True, check=False, timeout=300
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def let_others_in(folder: Path) -> None:
    """Other users may pass pytest's own directories down to this one."""
    for each in (folder, *folder.parents):
        each.chmod(0o755)
        if each.name.startswith("pytest-of-"):
            break


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
def test_other_users_may_look_and_members_of_the_group_may_change(tmp_path: Path) -> None:
    let_others_in(tmp_path)
    path = tmp_path / "s"
    with Served(path, gid=4242, barred=frozenset({4300})) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == 4242
        look, change = b'{"v":1,"op":"list"}\n', b'{"v":1,"id":9,"op":"pause","name":"web"}\n'
        assert b"PermissionError" in as_other(path, 4001, "", look)  # the mode
        path.chmod(0o666)  # as an administrator may
        assert b'"ok"' in as_other(path, 4001, "", look)
        refused = json.loads(as_other(path, 4001, "", change))
        assert refused["error"] == {
            "code": "denied", "message": "only root and members of the group operators may pause"
        }  # fmt: skip
        ((peer, request),) = served.denied
        assert (peer.uid, peer.may_change, type(request)) == (4001, False, Pause)
        assert b"longer than 4096" in as_other(path, 4001, "", b"x" * (MAX_LOOKING + 1))
        assert b"no such tap" in as_other(path, 4001, "4242", change)
        assert b"no such tap" in as_other(path, 4001, "", change, gid=4242)
        turned_away = json.loads(as_other(path, 4300, "4242", look))  # barred, whatever its groups
        assert turned_away["error"] == {"code": "denied", "message": "the user that workers run as may ask for nothing"}
        with Client(path) as client, pytest.raises(ControlError, match="no such tap"):
            client.ask(Pause(name="web"))


HOLD = """
import socket, sys
held = []
for _ in range(20):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
"""A program that takes twenty connections and keeps them."""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_one_user_cannot_take_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_USERS_CLIENTS", 4)
    monkeypatch.setattr(server, "MAX_CLIENTS", 8)
    with Served(tmp_path / "s") as served, contextlib.ExitStack() as stack:
        served.path.chmod(0o666)
        let_others_in(tmp_path)
        words = ["setpriv", "--reuid=4001", "--regid=4001", "--clear-groups", "--", sys.executable, "-c", HOLD]
        holder = subprocess.Popen([*words, str(served.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with holder:
            assert holder.stdout is not None and holder.stdin is not None
            assert holder.stdout.readline() == b"held\n"
            until(lambda: served.clients() == 4, "its share")
            ours = [stack.enter_context(Client(served.path)) for _ in range(8)]
            assert [client.ask(List()) for client in ours] == [{"taps": []}] * 8
            assert json.loads(as_other(served.path, 4002, "", b'{"v":1,"op":"list"}\n'))["error"]["code"] == "busy"
            assert [client.ask(List()) for client in ours] == [{"taps": []}] * 8, "root's give way to nobody else"
            holder.stdin.close()


def test_a_stale_socket_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Served(path), Client(path) as client:
        assert client.ask(List()) == {"taps": []}
    assert not path.exists()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(FileExistsError, match="is not a socket"):
        Served(path)
    assert victim.read_text() == "precious"
    path.unlink()
    path.write_text("a file")
    with pytest.raises(FileExistsError):
        Served(path)
    assert path.read_text() == "a file"


def test_without_descriptors_it_waits_and_does_not_spin(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept() -> Any:
        tries.append(time.monotonic())
        raise OSError(24, "Too many open files")

    tries: list[float] = []
    real = served.server._listener
    served.do(lambda: monkeypatch.setattr(served.server, "_listener", type("L", (), {
        "accept": staticmethod(accept), "fileno": real.fileno, "close": real.close})()))  # fmt: skip
    until(lambda: served.server._listener is not real, "the change")
    with connect(served.path):
        until(lambda: len(tries) >= 2, "another try")
        served.do(lambda: monkeypatch.undo())
        time.sleep(0.1)
        assert len(tries) < 20
