# SPDX-License-Identifier: Apache-2.0
"""The names of a tap's shadows, resolved at its start and then regularly, in the background.

Theory of operation
-------------------
Replies are bytes of the network, and a resolver may take half a minute.  So a name is looked up by getent(1), which
uses the C library's resolver, in a process of its own without privilege.  Only a tap's start waits, for the first
reply.  A later look-up that has not ended when the next one is due is given up.  What getent prints is parsed as a
list of addresses and nothing else.

getaddrinfo(3) does not report a time to live, so names are looked up every `Shadow.resolve_every` seconds.

If anything fails, or if one of the new addresses is production's, the old addresses stay.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final, TypeAlias

import msgspec

from tapmirror.spawn import unsignalled
from tapmirror.spec import Shadow
from tapmirror.supervisor.addresses import ADDRESSES, Address

OUTPUT: Final = 8192
"""Most bytes of a reply that are read: a hundred addresses, each three times."""

FIRST_TIME: Final = 30.0
"""Seconds that a tap's start waits for an address: two attempts at each of three name servers (resolv.conf(5))."""


class Undecided:
    """A `Judge` cannot tell yet; ask it again later."""


Judge: TypeAlias = Callable[[int, Sequence[Address]], str | Undecided | None]
"""Why a shadow (its index) may not have these addresses; None: it may."""


class ResolveError(Exception):
    """A name has no address; the message says why."""


def look_up(shadow: Shadow, identity: tuple[int, int]) -> list[Address]:
    """The socket addresses of a shadow, looked up by a process of this user and group.  Raises `ResolveError`.

    A literal address needs no process, unless it names an interface.
    """
    if _is_literal(shadow.host) and "%" not in shadow.host:
        address = ipaddress.ip_address(shadow.host)
        if address.version == 6 and address.is_link_local:  # connect(2) refuses it, for ever
            raise ResolveError("a link-local address is one of an interface, as in [fe80::1%eth0]:80")
        return parsed(f"{shadow.host} STREAM".encode(), shadow.port)
    with ExitStack() as stack:
        try:
            with unsignalled():  # what a signal's handler raises comes when it is known what is to be ended
                process = stack.enter_context(_ask(shadow.host, identity))
                stack.callback(process.kill)
        except OSError as error:
            raise ResolveError(f"getent: {error.strerror}") from None
        try:
            code, output = _wait(process, time.monotonic() + FIRST_TIME)
        except subprocess.TimeoutExpired:
            raise ResolveError(f"no answer within {FIRST_TIME:g} s") from None
    found = _read(code, output, shadow.port)
    if isinstance(found, str):
        raise ResolveError(found)
    return found


class Counts(msgspec.Struct):
    """How the look-ups of a tap ended."""

    changed: int = 0
    failed: int = 0
    refused: int = 0


class Names:
    """The names of one tap's shadows.

    `judge` decides about new addresses.  `warn` gets one line for each change, and one for a failure, however long it
    lasts.  Call `poll` once a second, and `close` at the end.
    """

    def __init__(
        self,
        shadows: Sequence[Shadow],
        known: Sequence[Sequence[Address]],
        judge: Judge,
        warn: Callable[[str], None],
        *,
        identity: tuple[int, int],
        now: float,
    ) -> None:
        self.counts = Counts()
        self._names = [
            _Name(index, shadow, list(addresses), now)
            for index, (shadow, addresses) in enumerate(zip(shadows, known, strict=True))
            if shadow.resolve_every and not _is_literal(shadow.host)
        ]
        self._judge = judge
        self._warn = warn
        self._identity = identity

    def poll(self, now: float) -> list[tuple[int, list[Address]]]:
        """The shadows, by index, that have other addresses since the last call.  Waits for nothing."""
        changes = []
        for name in self._names:
            reply: list[Address] | str | None = name.undecided
            if reply is None:
                if name.process is None:
                    if now >= name.due:
                        name.begin(now, self._identity)
                    continue
                reply = name.reply(now)
                if reply is None:
                    continue
            found = self._taken(name, reply)
            if found is not None:
                changes.append((name.index, found))
        return changes

    def close(self) -> None:
        """End what is under way."""
        for name in self._names:
            name.end()

    def _taken(self, name: _Name, reply: list[Address] | str) -> list[Address] | None:
        """The new addresses, if there are any and the judge accepts them."""
        host = name.shadow.host
        name.undecided = None
        if isinstance(reply, str):
            self.counts.failed += 1
            name.tell(self._warn, f"{host} cannot be resolved again ({reply}); its old addresses are kept")
            return None
        if set(reply) == set(name.known):
            name.tell(self._warn, "")
            return None
        refusal = self._judge(name.index, reply)
        if isinstance(refusal, Undecided):
            name.undecided = reply
            return None
        if refusal is not None:
            self.counts.refused += 1
            name.tell(self._warn, f"{host} has new addresses that are refused ({refusal}); its old ones are kept")
            return None
        self.counts.changed += 1
        name.known = reply
        name.said = ""
        self._warn(f"{host} is at {', '.join(str(address[0]) for _, address in reply)} now")
        return reply


class _Name:
    """One shadow's name."""

    def __init__(self, index: int, shadow: Shadow, known: list[Address], now: float) -> None:
        self.index = index
        self.shadow = shadow
        self.known = known
        self.due = now + shadow.resolve_every
        self.process: subprocess.Popen[bytes] | None = None
        self.undecided: list[Address] | None = None
        """A reply that the judge has not decided about yet."""
        self.said = ""
        """The problem that was reported last."""

    def begin(self, now: float, identity: tuple[int, int]) -> None:
        """Ask."""
        self.due = now + self.shadow.resolve_every
        try:
            self.process = _ask(self.shadow.host, identity)
        except OSError:
            self.process = None  # out of processes or memory: the next time

    def reply(self, now: float) -> list[Address] | str | None:
        """The addresses, or why there are none; None: it is still looked for."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        code = process.poll()
        if code is None:
            if now < self.due:
                return None
            self.end()
            return f"no answer within {self.shadow.resolve_every:g} s"
        output = os.read(process.stdout.fileno(), OUTPUT)
        self.end()
        return _read(code, output, self.shadow.port)

    def end(self) -> None:
        """Stop asking."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def tell(self, warn: Callable[[str], None], problem: str) -> None:
        """Say what is wrong, once."""
        if problem and problem != self.said:
            warn(problem)
        elif self.said and not problem:
            warn(f"{self.shadow.host} is resolved again")
        self.said = problem


def _ask(host: str, identity: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Raises OSError."""
    uid, gid = identity
    return subprocess.Popen(
        ["getent", "--no-addrconfig", "ahosts", "--", host],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        user=uid,
        group=gid,
        extra_groups=[],
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], end: float) -> tuple[int, bytes]:
    """The exit code and the output.  If the process prints more than `OUTPUT`, its end is not waited for: the code is
    0.

    `end` is of the monotonic clock.  Raises `subprocess.TimeoutExpired`.
    """
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    output = b""
    while len(output) < OUTPUT:
        left = max(0.0, end - time.monotonic())
        if not poll.poll(left * 1000):
            raise subprocess.TimeoutExpired(process.args, left)
        piece = os.read(process.stdout.fileno(), OUTPUT - len(output))
        if not piece:
            return process.wait(max(0.0, end - time.monotonic())), output
        output += piece
    return 0, output


def _read(code: int, output: bytes, port: int) -> list[Address] | str:
    """The addresses, or why there are none."""
    if code:
        return "no such name" if code == 2 else f"getent ended with status {code}"
    return parsed(output, port) or "no addresses"


def parsed(output: bytes, port: int) -> list[Address]:
    """The socket addresses in what `getent ahosts` printed: lines of address, type, name.

    A link-local address that names no interface is none: connect(2) refuses it, for ever.
    """
    found: list[Address] = []
    for line in output.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[1] != "STREAM":
            continue
        text, _, zone = words[0].partition("%")
        try:
            address = ipaddress.ip_address(text)
            scope = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        except (ValueError, OSError):
            continue
        if address.version == 6 and address.is_link_local and not scope:
            continue
        if address.version == 4:
            entry: Address = (int(socket.AF_INET), (str(address), port))
        else:
            entry = (int(socket.AF_INET6), (str(address), port, 0, scope))
        if entry not in found:
            found.append(entry)
    return found[:ADDRESSES]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
