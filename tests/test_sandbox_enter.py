# SPDX-License-Identifier: Apache-2.0
"""What parses the network holds nothing: all that a worker could try fails, and its own work does not."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from inside import tried
from lab import Lab
from tapmirror import loader
from tapmirror.events import LOOP_DSCP
from tapmirror.sandbox.numbers import KNOWN
from tapmirror.sandbox.rules import WITH_IMPORTS, WORKER
from tapmirror.source.sockets import open_live
from tapmirror.spec import Hook, Protocol, TapSpec, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
SHADOW_PORT: Final = 8080
CASES: Final = ("ebpf", "packet", "hook")


def call(number: int, *arguments: Any) -> int:
    """A system call.  Raises OSError."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def headers() -> dict[str, int]:
    """Numbers of system calls by name."""
    text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text(encoding="ascii")
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}


def connecting(port: int) -> Callable[[], None]:
    """Connect to a port of this host, where nobody is."""

    def attempt() -> None:
        with socket.socket() as sock:
            sock.connect(("127.0.0.1", port))

    return attempt


def attempts(secret: Path, own: int) -> dict[str, Callable[[], object]]:
    """All of them."""

    def fast_open() -> None:
        with socket.socket() as sock:
            sock.sendto(b"x", 0x20000000, ("127.0.0.1", 22))

    def listening() -> None:
        with socket.socket() as sock:
            sock.listen()

    def bound() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))

    return {
        "a secret of root's": lambda: secret.read_text(),
        "any file": lambda: Path("/etc/passwd").read_text(),
        "another process' memory": lambda: Path("/proc/1/environ").read_bytes(),
        "its own memory": lambda: open("/proc/self/mem", "r+b"),
        "a file in /tmp": lambda: Path("/tmp/tapmirror-test-sandbox").write_bytes(b"x"),
        "a directory": lambda: os.mkdir("/tmp/tapmirror-test-sandbox"),
        "removal": lambda: os.unlink("/tmp/tapmirror-test-sandbox"),
        "a link": lambda: os.symlink("/etc/passwd", "/tmp/tapmirror-test-sandbox"),
        "a list of files": lambda: os.listdir("/root"),
        "memory as a file": lambda: os.memfd_create("x"),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "a process": os.fork,
        "a command": lambda: subprocess.run(["/bin/true"], check=False),
        "a thread": lambda: threading.Thread(target=int).start(),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "datagrams": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "pair of sockets": socket.socketpair,
        "listen": listening,
        "bind": bound,
        "connect elsewhere": connecting(22),
        "connect elsewhere at once": fast_open,
        "bpf": lambda: call(321, 0, b"\0" * 64, 64),
        "perf": lambda: call(298, b"\0" * 128, 0, -1, -1, 0),
        "ptrace": lambda: call(101, 16, own, 0, 0),
        "read its parent": lambda: call(310, own, b"\0" * 16, 1, b"\0" * 16, 1, 0),
        "a signal": lambda: os.kill(own, 0),
        "a signal to itself": lambda: os.kill(os.getpid(), signal.SIGUSR1),
        "setuid": lambda: os.setuid(0),
        "setgid": lambda: os.setgid(0),
        "groups": lambda: os.setgroups([0]),
        "namespaces": lambda: call(272, 0x10000000),
        "mount": lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, None),
        "chroot": lambda: os.chroot("/tmp"),
        "io_uring": lambda: call(425, 8, b"\0" * 120),
        "keys": lambda: call(248, b"user", b"x", b"x", 1, -3),
        "another filter": lambda: call(317, 1, 0, struct.pack("@HP", 0, 0)),
        "dumpable": lambda: call(157, 4, 1, 0, 0, 0),
        "limits": lambda: call(302, 0, resource.RLIMIT_NOFILE, struct.pack("=QQ", 10, 10), None),
        "others' limits": lambda: call(302, own, resource.RLIMIT_CORE, struct.pack("=QQ", 0, 0), None),
        "executable memory": lambda: call(9, 0, 4096, 7, 0x22, -1, 0),
        "copies of descriptors": lambda: os.dup(0),
    }


ALLOWED_TO_HOOKS: Final = {"executable memory"}
"""A module's library is mapped so."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


Inside: TypeAlias = Callable[[Mapping[str, Callable[[], object]]], dict[str, str]]


@pytest.fixture(params=CASES, scope="module")
def inside(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[str, list[int], Inside]]:
    """Which kind of worker, its descriptors, and how to try things in it."""
    kind = request.param
    more: dict[str, Any] = {"protocol": Protocol.HTTP, "hook": Hook(call="inside:unchanged")} if kind == "hook" else {}
    spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow(f"10.77.2.2:{SHADOW_PORT}"),), **more)
    capture = "packet" if kind == "packet" else "ring"
    with ExitStack() as stack:
        with lab.node.enter():
            if capture == "packet":
                live = open_live("eth0", spec.limits.ring_bytes, loopback=False, ports=[80])
                stack.enter_context(live)
                fds = [live.fileno()]
            else:
                loaded = loader.load(
                    loader.Request(
                        ports=[80], addrs=[], excluded=[], threshold=0, seed=0, dscp=LOOP_DSCP,
                        egress_all=False, ring_bytes=spec.limits.ring_bytes,
                    )
                )  # fmt: skip
                stack.callback(loaded.close)
                fds = loaded.worker_fds()
                for fd in fds:
                    stack.callback(os.close, fd)

        def run(attempts: Mapping[str, Callable[[], object]]) -> dict[str, str]:
            with lab.node.enter():
                return tried(spec, capture, fds, attempts)

        yield kind, fds, run


def test_every_try_fails(inside: tuple[str, list[int], Inside], tmp_path: Path) -> None:
    kind, _, run = inside
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    found = run(attempts(secret, os.getpid()))
    assert found.pop("sandbox") == "landlock seccomp"
    succeeded = {name for name, error in found.items() if not error}
    assert succeeded == (ALLOWED_TO_HOOKS if kind == "hook" else set())
    assert set(found.values()) - {""} <= {"EPERM", "EACCES", "RuntimeError"}, found  # "can't start new thread"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_no_other_system_call_is_let_through(inside: tuple[str, list[int], Inside]) -> None:
    """All that the system knows, with arguments that could do no harm; those beyond do not exist."""
    kind, _, run = inside
    rules = {**WORKER, **(WITH_IMPORTS if kind == "hook" else {})}
    others = {name: number for name, number in headers().items() if name not in rules}
    assert len(others) > 250

    def calling(number: int) -> Callable[[], object]:
        return lambda: call(number, -1, 0, 0, 0, 0, 0)

    tries = {name: calling(number) for name, number in others.items()}
    found = run({**tries, "far beyond": calling(KNOWN + 1_000), "x32": lambda: 0})
    del found["sandbox"], found["x32"]
    assert found.pop("far beyond") == "ENOSYS"
    younger = {name for name, number in others.items() if number > KNOWN}  # than the filter: as if they did not exist
    assert {name for name, error in found.items() if error != ("ENOSYS" if name in younger else "EPERM")} == set()


def test_its_own_work_is_not_refused(inside: tuple[str, list[int], Inside]) -> None:
    """Nobody listens there: refused by the port, and not by the kernel."""
    kind, _, run = inside

    def signals() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    found = run(
        {
            "connect to the shadow": connecting(SHADOW_PORT),
            "six": lambda: socket.socket(socket.AF_INET6).close(),
            "memory": lambda: bytearray(64 << 20),
            "randomness": lambda: os.urandom(32),
            "signals": signals,
            "sleep": lambda: time.sleep(0.001),
            "an import": lambda: importlib.import_module("nturl2path"),
        }
    )
    del found["sandbox"]
    assert found.pop("connect to the shadow") == "ECONNREFUSED"
    assert found.pop("an import") == ("" if kind == "hook" else "ModuleNotFoundError")
    assert set(found.values()) == {""}


@pytest.mark.parametrize("inside", ["packet"], indirect=True)
def test_a_packet_socket_can_only_be_read(inside: tuple[str, list[int], Inside]) -> None:
    """It could send any packet, from any address, on any interface."""
    _, (fd,), run = inside
    frame = b"\xff" * 60

    def with_socket(use: Callable[[socket.socket], object]) -> Callable[[], object]:
        def attempt() -> None:
            sock = socket.socket(fileno=fd)
            try:
                use(sock)
            finally:
                sock.detach()

        return attempt

    found = run(
        {
            "write": lambda: os.write(fd, frame),
            "writev": lambda: os.writev(fd, [frame]),
            "send": with_socket(lambda sock: sock.send(frame)),
            "sendto": with_socket(lambda sock: sock.sendto(frame, ("lo", 0x0800))),
            "sendmsg": with_socket(lambda sock: sock.sendmsg([frame])),
            "bind": with_socket(lambda sock: sock.bind(("lo", 3))),
            "option": with_socket(lambda sock: sock.setsockopt(263, 1, struct.pack("=iHH8x", 1, 1, 0))),
        }
    )
    del found["sandbox"]
    assert set(found.values()) == {"EPERM"}, found
