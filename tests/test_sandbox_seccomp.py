# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, judged by an interpreter of classic BPF: also that of a machine that this one is not."""

from __future__ import annotations

import errno
import mmap
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tapmirror.sandbox.numbers import AUDIT_ARCH, KNOWN, NUMBERS
from tapmirror.sandbox.rules import WITH_IMPORTS, WORKER, only_read
from tapmirror.sandbox.seccomp import ALLOW, ERRNO, KILL_PROCESS, X32, program

REFUSED: Final = ERRNO | errno.EPERM
PACKET_FD: Final = 9


def judge(code: bytes, number: int, *arguments: int, arch: int) -> int:
    """What the kernel does with a call: the value that the program returns."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(value & (1 << 64) - 1 for value in (*arguments, *[0] * 6)[:6]))
    instructions = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    accumulator, at = 0, 0
    while True:
        operation, true, false, operand = instructions[at]
        at += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        else:
            held = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x45: accumulator & operand}[operation]
            at += true if held else false


@pytest.fixture(params=NUMBERS)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("read", (3,), ALLOW),
        ("write", (PACKET_FD,), REFUSED),
        ("write", (PACKET_FD + 1,), ALLOW),
        ("socket", (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0), ALLOW),
        ("socket", (socket.AF_INET6, socket.SOCK_STREAM, 0), ALLOW),
        ("socket", (socket.AF_INET, socket.SOCK_RAW, 0), REFUSED),
        ("socket", (socket.AF_PACKET, socket.SOCK_STREAM, 0), REFUSED),
        ("sendto", (4, 1, 1, socket.MSG_NOSIGNAL, 0, 0), ALLOW),
        ("sendto", (4, 1, 1, 0, 1, 16), REFUSED),
        ("sendto", (4, 1, 1, 0, 1 << 32, 16), REFUSED),
        ("sendto", (4, 1, 1, 0x20000000, 0, 0), REFUSED),
        ("sendto", (PACKET_FD, 1, 1, 0, 0, 0), REFUSED),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_WRITE), ALLOW),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC), REFUSED),
        ("ioctl", (4, 0x5421), ALLOW),
        ("ioctl", (4, 0x5412), REFUSED),
        ("setsockopt", (4, socket.IPPROTO_TCP, 1), ALLOW),
        ("setsockopt", (PACKET_FD, socket.SOL_SOCKET, 26), ALLOW),
        ("setsockopt", (PACKET_FD, socket.SOL_SOCKET, 27), REFUSED),
        ("setsockopt", (PACKET_FD, 263, 26), REFUSED),
    ],
)
def test_calls(machine: str, name: str, arguments: tuple[int, ...], result: int) -> None:
    code = program(only_read(WORKER, [PACKET_FD]), machine)
    assert judge(code, NUMBERS[machine][name], *arguments, arch=AUDIT_ARCH[machine]) == result


def test_files_are_for_those_who_import(machine: str) -> None:
    arch, number = AUDIT_ARCH[machine], NUMBERS[machine]["openat"]
    strict, lax = program(WORKER, machine), program({**WORKER, **WITH_IMPORTS}, machine)
    assert judge(strict, number, -100, 1, 0, arch=arch) == REFUSED
    assert judge(lax, number, -100, 1, 0o2000000, arch=arch) == ALLOW  # O_CLOEXEC
    for flags in (1, 2, 0o100, 0o1000, 0o2000, 0o20200001):
        assert judge(lax, number, -100, 1, flags, arch=arch) == REFUSED


def test_everything_else(machine: str) -> None:
    arch, code = AUDIT_ARCH[machine], program(WORKER, machine)
    named = {NUMBERS[machine][name] for name in WORKER if name in NUMBERS[machine]}
    assert {judge(code, number, arch=arch) for number in range(KNOWN + 1) if number not in named} == {REFUSED}
    assert judge(code, KNOWN + 1, arch=arch) == ERRNO | errno.ENOSYS
    assert judge(code, 0, arch=0x40000003) == KILL_PROCESS  # a call of 32-bit x86
    if machine == "x86_64":
        assert judge(code, X32 | 1, arch=arch) == KILL_PROCESS


def test_every_rule_has_a_number(machine: str) -> None:
    absent = {name for name in {**WORKER, **WITH_IMPORTS} if name not in NUMBERS[machine]}
    assert absent == ({"epoll_wait", "poll", "select", "time", "readlink"} if machine == "aarch64" else set())


@pytest.mark.parametrize(
    ("of", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_numbers_are_those_of_the_systems_headers(of: str, header: str) -> None:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path}")
    text = path.read_text(encoding="ascii")
    told = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    told["newfstatat"] = told.get("newfstatat", told.get("fstatat", 0))
    for name, number in NUMBERS[of].items():
        assert told[name] == number, name


THREADED: Final = """
import os, threading
from tapmirror import privsep
from tapmirror.sandbox.rules import WORKER
from tapmirror.sandbox.seccomp import restrict
go, found = threading.Event(), []
def attempt():
    go.wait()
    try:
        os.getpriority(os.PRIO_PROCESS, 0)
    except PermissionError:
        found.append("refused")
thread = threading.Thread(target=attempt)
thread.start()
privsep._prctl(privsep.PR_SET_NO_NEW_PRIVS, 1)
restrict(WORKER)
go.set()
thread.join()
print(*found)
"""
"""A program with a thread that is older than its filter."""


def test_it_holds_in_all_threads() -> None:
    done = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.stderr) == ("refused\n", "")
