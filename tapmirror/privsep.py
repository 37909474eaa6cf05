# SPDX-License-Identifier: Apache-2.0
"""Checks and gives up privileges, and passes messages with descriptors between processes.  It does nothing else.

The rules are those of prctl(2), capabilities(7) and unix(7).  What was given up is checked afterwards.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import resource
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

WORKER_USERS: Final = ("tapmirror", "nobody")
"""The worker runs as the first of these users that exists."""
CAPABILITIES: Final = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_NET_RAW": 13}
"""The capabilities that are needed to start a tap, with their numbers (include/uapi/linux/capability.h)."""
MAX_FDS: Final = 8

PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_LAST: Final = 63
PIECE: Final = 1 << 13
"""Most characters of a piece of a long message: in JSON it stays below the worker's `MESSAGE`, whatever they are."""


class PrivilegeError(RuntimeError):
    """Privileges could not be given up."""


def worker_identity() -> tuple[int, int]:
    """The (uid, gid) that a worker runs as.  Raises `PrivilegeError` if the system has no user for it."""
    for name in WORKER_USERS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise PrivilegeError(f"none of the users {', '.join(WORKER_USERS)} exists")


def lacking(status: str | None = None) -> list[str]:
    """Those of `CAPABILITIES` that this process does not have; `status` is the text of /proc/self/status."""
    text = Path("/proc/thread-self/status").read_text() if status is None else status
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    have = int(found[1], 16) if found else 0
    return [name for name, bit in CAPABILITIES.items() if not have >> bit & 1]


def user_id(name: str) -> int | None:
    """The number of a user; None: no user has this name."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def drop_privileges(uid: int, gid: int, files: int) -> None:
    """Become `uid`, `gid` for good: no groups, no capabilities, no way back, no core dump, no children, no files.

    `files` is the limit of open descriptors afterwards, as far as the hard limit allows.  Raises
    `PrivilegeError` if anything is left.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, hard)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for capability in range(CAP_LAST + 1):
        with suppress(OSError):
            _prctl(PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    with suppress(OSError):
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    os.umask(0o077)
    os.chdir("/")
    _check(uid, gid)


def send(sock: socket.socket, message: Any, fds: Sequence[int] = ()) -> None:
    """Send one message as JSON, with descriptors.  Raises OSError."""
    data = msgspec.json.encode(message)
    if fds:
        socket.send_fds(sock, [data], list(fds))
    else:
        sock.send(data)


def receive(sock: socket.socket, limit: int) -> tuple[dict[str, Any], list[int]]:
    """Receive one message of at most `limit` bytes, with its descriptors.  Raises EOFError at the end, OSError, and
    ValueError if it is no JSON object.
    """
    data, fds, flags, _ = socket.recv_fds(sock, limit, MAX_FDS)
    if not data:
        raise EOFError
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ValueError("message too long")
    return msgspec.json.decode(data, type=dict[str, Any]), fds


def receive_bare(sock: socket.socket, limit: int) -> dict[str, Any]:
    """Receive one message of at most `limit` bytes from an untrusted process.  It raises what `receive` raises.

    There is no room for descriptors, so the kernel discards any that come (unix(7)); they are an error.
    """
    data, _, flags, _ = sock.recvmsg(limit)
    if flags & socket.MSG_CTRUNC:
        raise ValueError("a message with descriptors")
    if not data:
        raise EOFError
    if flags & socket.MSG_TRUNC:
        raise ValueError("message too long")
    return msgspec.json.decode(data, type=dict[str, Any])


def send_large(sock: socket.socket, message: Any, fds: Sequence[int] = ()) -> None:
    """Send one message of any size, through a descriptor of its own.  Raises OSError."""
    data = msgspec.json.encode(message)
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        send(sock, {"bytes": len(data)}, [memory, *fds])
    finally:
        os.close(memory)


def receive_large(sock: socket.socket, limit: int) -> tuple[dict[str, Any], list[int]]:
    """Receive one message of `send_large`, of at most `limit` bytes, with its descriptors.  It raises what `receive`
    raises.
    """
    message, (memory, *fds) = receive(sock, 4096)
    with open(memory, "rb") as file:
        if not 0 < message["bytes"] <= limit:
            raise ValueError("message too long")
        return msgspec.json.decode(os.pread(file.fileno(), message["bytes"], 0), type=dict[str, Any]), fds


class Parcel:
    """One message of any size, which is sent as several of at most `PIECE` characters (see `Pieces`)."""

    def __init__(self, message: Any) -> None:
        self._text = msgspec.json.encode(message).decode()
        self._sent = 0

    def send(self, sock: socket.socket, most: int) -> bool:
        """Send up to `most` pieces without waiting for the reader; returns whether all are sent.  Raises OSError."""
        for _ in range(most):
            end = self._sent + PIECE
            more = end < len(self._text)
            piece = msgspec.json.encode({"piece": self._text[self._sent : end], "more": more})
            try:
                sock.send(piece, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            self._sent = end
            if not more:
                return True
        return False


class Pieces:
    """Joins the pieces of a `Parcel` as they come; a message has at most `limit` characters."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []
        self._size = 0

    def take(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message that this one completes, or is itself; empty while more is to come.  Raises ValueError."""
        piece = message.get("piece")
        if not isinstance(piece, str):
            return message
        self._parts.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise ValueError("message too long")
        if message.get("more"):
            return {}
        whole, self._parts, self._size = "".join(self._parts), [], 0
        return msgspec.json.decode(whole, type=dict[str, Any])


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check(uid: int, gid: int) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/thread-self/status").read_text().splitlines() if ":\t" in line
    )
    left = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[name], 16)]
    if left or status["NoNewPrivs"] != "1":
        raise PrivilegeError(f"still privileged: {', '.join(left) or 'no_new_privs is not set'}")
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        raise PrivilegeError("still another user")
    if uid != 0:
        with suppress(PermissionError):
            os.setuid(0)
            raise PrivilegeError("could become root again")
