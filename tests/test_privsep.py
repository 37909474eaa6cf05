# SPDX-License-Identifier: Apache-2.0
"""Giving up privileges, tried from inside; messages with descriptors."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tapmirror import privsep

# What a process that gave up its privileges tries; each must fail.
ATTEMPTS = {
    "become root": "os.setuid(0)",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "firewall mark": "socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1)",
    "secret": "open(sys.argv[1]).read()",
    "another process": "os.kill(1, 9)",
    "memory of another process": "open('/proc/1/mem', 'rb')",
    "bpf": "check(ctypes.CDLL(None, use_errno=True).syscall(321, 0, b'\\0' * 64, 64))",
    "mount": "check(ctypes.CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, None))",
    "a file that grows": "os.write(os.memfd_create('x'), b'x')",
    "open files": "resource.setrlimit(resource.RLIMIT_CORE, (1, 1))",
}
PROGRAM = """
import ctypes, os, resource, socket, sys
from tapmirror import privsep
privsep.drop_privileges(*privsep.worker_identity(), 100)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
try:
    {attempt}
except (OSError, ValueError):
    sys.exit(7)
"""


@pytest.mark.ebpf
@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_is_left(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    child = os.fork()
    if not child:
        code = 1
        try:
            import sys

            sys.argv = ["", str(secret)]
            exec(PROGRAM.format(attempt=ATTEMPTS[name]), {})
        except SystemExit as error:
            code = int(str(error.code))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.ebpf
def test_status_of_the_process() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([0, 4242])
            os.umask(0)
            privsep.drop_privileges(*privsep.worker_identity(), 100)
            os.write(write_end, Path("/proc/thread-self/status").read_bytes())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end, encoding="ascii", errors="replace") as pipe:
        status = dict(line.split(":\t", 1) for line in pipe.read().splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {str(privsep.worker_identity()[0])}
    assert not status["Groups"].strip()
    assert status["Umask"] == "0077"


@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("setgroups", "still another user"),
        ("setresgid", "still another user"),
        ("setresuid", "still privileged: CapPrm, CapEff"),
        ("no_new_privs", "still privileged: no_new_privs is not set"),
    ],
)
def test_what_was_not_given_up_is_noticed(fails: str, words: str) -> None:
    """A call that says that it was done, and was not."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([4242])
            if fails == "no_new_privs":
                privsep.PR_SET_NO_NEW_PRIVS = privsep.PR_SET_DUMPABLE  # type: ignore[misc]
            else:
                setattr(os, fails, lambda *_: None)
            privsep.drop_privileges(*privsep.worker_identity(), 100)
        except privsep.PrivilegeError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end, encoding="utf-8") as pipe:
        assert pipe.read() == words


def test_messages_carry_descriptors() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    with one, two:
        privsep.send(one, {"op": "x"}, [write_end])
        os.close(write_end)
        message, fds = privsep.receive(two, 1000)
        assert message == {"op": "x"}
        os.write(fds[0], b"through")
        assert os.read(read_end, 100) == b"through"
        os.close(fds[0])
    os.close(read_end)


@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff", b'{"a": "' + b"x" * 2000 + b'"}'])
def test_wrong_messages_are_refused(data: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        one.send(data)
        with pytest.raises(ValueError):  # noqa: PT011 -- msgspec's errors are ValueErrors too
            privsep.receive(two, 1000)


@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff", b'{"a": "' + b"x" * 2000 + b'"}'])
def test_wrong_messages_of_who_is_not_trusted_are_refused(data: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        one.send(data)
        with pytest.raises(ValueError):  # noqa: PT011
            privsep.receive_bare(two, 1000)


@pytest.mark.parametrize("data", [b"{}", b""])
def test_descriptors_of_who_is_not_trusted_are_discarded(data: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        before = os.listdir("/proc/self/fd")
        socket.send_fds(one, [data], [one.fileno()] * 5)
        with pytest.raises(ValueError, match="descriptors"):
            privsep.receive_bare(two, 1000)
        assert os.listdir("/proc/self/fd") == before
        privsep.send(one, {"op": "x"})
        assert privsep.receive_bare(two, 1000) == {"op": "x"}
        one.close()
        with pytest.raises(EOFError):
            privsep.receive_bare(two, 1000)


def test_the_end_is_an_end() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with two:
        one.close()
        with pytest.raises(EOFError):
            privsep.receive(two, 1000)


def test_large_messages_have_a_bound_too() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        privsep.send_large(one, {"text": "x" * 100_000})
        assert privsep.receive_large(two, 200_000) == ({"text": "x" * 100_000}, [])
        privsep.send_large(one, {"text": "x" * 100_000})
        with pytest.raises(ValueError, match="message too long"):
            privsep.receive_large(two, 100_000)


def test_pieces_without_end_have_a_bound() -> None:
    pieces = privsep.Pieces(100)
    assert pieces.take({"piece": "x" * 60, "more": True}) == {}
    with pytest.raises(ValueError, match="message too long"):
        pieces.take({"piece": "x" * 60, "more": True})


def test_a_parcel_goes_as_it_is_taken() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message = {"text": '"\\\x00\u20ac\U0001f600' * 200_000}
    with ours, theirs:
        parcel = privsep.Parcel(message)
        message["text"] = "what it is later"
        assert not parcel.send(ours, 1000), "nobody reads, and it comes back"
        pieces = privsep.Pieces(1 << 24)
        found: dict[str, object] = {}
        done = False
        while not found:
            done = done or parcel.send(ours, 3)
            found = pieces.take(privsep.receive(theirs, 1 << 16)[0])
        assert found == {"text": '"\\\x00\u20ac\U0001f600' * 200_000}
        assert done
        assert privsep.Parcel({"a": 1}).send(ours, 1)
        assert pieces.take(privsep.receive(theirs, 1 << 16)[0]) == {"a": 1}
        theirs.close()
        with pytest.raises(OSError):  # noqa: PT011
            privsep.Parcel({"a": 1}).send(ours, 1)


def test_what_root_may_not_is_known() -> None:
    assert privsep.lacking("Name:\tx\nCapEff:\t0000000000002040\n") == ["CAP_SETUID"]
    assert privsep.lacking("Name:\tx\nCapEff:\t00000000000020c0\n") == []
    assert privsep.lacking("Name:\tx\n") == list(privsep.CAPABILITIES)


def test_users_by_name() -> None:
    assert privsep.user_id("root") == 0
    assert privsep.user_id("no such user") is None
