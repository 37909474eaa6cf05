# SPDX-License-Identifier: Apache-2.0
"""The Linux kernel as oracle: crafted segments to a real listening socket, and what its application read.

A TAP device is the wire.  The client's side of it is this process and no kernel, so nothing answers what the
server sends, neither with a reset nor with anything else.  The server's side is the kernel's TCP and an application
that reads at once whatever is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from lab.hosts import Host, LabError, undisturbed
from tapmirror.events import ACK, RST, SYN
from tapmirror.packet import Header, decode

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
SERVER: Final = "10.88.0.1"
CLIENT: Final = "10.88.0.2"
CLIENT_MAC: Final = "02:00:00:00:00:02"
PORT: Final = 80
FRAME_BYTES: Final = 65_600
SACK_OPTIONS: Final = bytes.fromhex("020405b4040203030701")
"""MSS 1460, SACK permitted, window scale 7."""
STUCK: Final = 1_000
"""Rounds of probes without progress after which a window is taken to be closed for good."""


@dataclass(frozen=True)
class Step:
    """A segment of the client; `at` counts from its first byte.

    `ack`: how far behind what the server sent (nothing) it acknowledges; `urgent`: the urgent pointer's value;
    `words`: what the data offset says; `spoil`: is added to the checksum.
    """

    at: int
    data: bytes = b""
    flags: int = ACK
    urgent: int = 0
    ack: int = 0
    words: int = 5
    spoil: int = 0


@dataclass
class Outcome:
    """What the server's application read, how its stream ended, and every packet on the wire."""

    read: bytes = b""
    ended: str = ""
    """"" (it did not), "fin" or "reset"."""
    packets: list[tuple[bool, bytes]] = field(default_factory=list)
    """(sent by the server, frame)."""


class Oracle:
    """`with Oracle() as oracle:` makes namespace, device and listener; `ask` runs one connection."""

    def __enter__(self) -> Self:
        self._host = Host("oracle")
        try:
            self._build()
        except BaseException:
            self._host.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            self._listener.close()
            os.close(self._wire)
            self._host.close()

    def _build(self) -> None:
        host = self._host
        for each in ("all", "default"):
            with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
                host.sysctl(f"ipv6.conf.{each}.disable_ipv6", 1)
        with host.enter():
            try:
                self._wire = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
                fcntl.ioctl(self._wire, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
            except OSError as error:
                raise LabError(f"no TAP device: {error}") from None
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        host.run(["ip", "addr", "add", f"{SERVER}/24", "dev", "tap0"])
        host.run(["ip", "link", "set", "tap0", "up"])
        host.run(["ip", "neigh", "add", CLIENT, "lladdr", CLIENT_MAC, "dev", "tap0", "nud", "permanent"])
        mac = host.json("ip", "-json", "link", "show", "tap0")[0]["address"]
        self._ethernet = bytes.fromhex((mac + CLIENT_MAC).replace(":", "")) + b"\x08\x00"
        host.sysctl("ipv4.tcp_fastopen", 0)
        host.sysctl("ipv4.tcp_challenge_ack_limit", 1 << 30)
        host.sysctl("ipv4.tcp_invalid_ratelimit", 0)
        self._listener.bind((SERVER, PORT))
        self._listener.listen(64)
        self._port = 1024

    def ask(self, steps: list[Step], first: int = 1000, with_syn: bytes = b"") -> Outcome:
        """One connection: a handshake by which the client's first byte has number `first`, and these segments."""
        outcome = Outcome()
        with self._connected(outcome, first, with_syn) as (connection, server):
            for step in steps:
                seq = (first + step.at) & 0xFFFFFFFF
                ack = (server + step.ack) & 0xFFFFFFFF
                self._send(outcome, seq, ack, step.flags, step.data, step.urgent, words=step.words, spoil=step.spoil)
                self._drain(outcome)
                self._read(connection, outcome)
            # Of data with a FIN the acknowledgement waits for what the application says (tcp_fin, "pingpong mode").
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._drain(outcome)
        return outcome

    def ask_slow(self, text: bytes, probes: int, first: int = 1000) -> Outcome:
        """One connection whose application reads only when its window is closed, to a client that keeps to it.

        Into the closed window go `probes` of one byte each, with the data that is next (RFC 9293, 3.8.6.1).  It may not
        open again: the kernel learns from a probe that it took how much memory a byte needs (`scaling_ratio`).
        """
        outcome = Outcome()
        with self._connected(outcome, first) as (connection, server):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sent, closed, stuck = 0, 0, 0
            while len(outcome.read) < len(text) and stuck < STUCK:
                self._send(outcome, first + sent, server, ACK, text[sent : sent + 1_000])
                replies = self._drain(outcome)
                acked = max((reply.ack - first for reply in replies), default=sent)
                if acked > sent or sent == len(text):
                    sent = acked
                    if sent < len(text):
                        continue
                closed += 1
                for _ in range(probes):
                    self._send(outcome, first + sent, server, ACK, text[sent : sent + 1])
                    self._drain(outcome)
                self._read(connection, outcome)
                before, replies = sent, self._drain(outcome)
                sent = max([sent, *(reply.ack - first for reply in replies)])
                stuck = stuck + 1 if sent == before else 0
            if not closed:
                raise LabError("the window never closed")
        return outcome

    @contextlib.contextmanager
    def _connected(self, outcome: Outcome, first: int, with_syn: bytes = b"") -> Iterator[tuple[socket.socket, int]]:
        """A connection: its server's socket, and the number of the server's first byte."""
        self._port = self._port + 1 if self._port < 65_000 else 1025
        self._drain(None)
        self._send(outcome, (first - 1) & 0xFFFFFFFF, 0, SYN, with_syn, options=SACK_OPTIONS)
        reply = next((h for h in self._drain(outcome) if h.flags & (SYN | RST) == SYN), None)
        if reply is None:
            raise LabError("no SYN-ACK")
        server = (reply.seq + 1) & 0xFFFFFFFF
        self._send(outcome, first & 0xFFFFFFFF, server, ACK)
        connection, _ = self._listener.accept()
        with connection:
            connection.setblocking(False)
            yield connection, server
            # Gone without a word to the other side, and without waiting for one.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._drain(None)

    def _read(self, connection: socket.socket, outcome: Outcome) -> None:
        while not outcome.ended:
            try:
                data = connection.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                outcome.ended = "reset"
                return
            outcome.read += data
            if not data:
                outcome.ended = "fin"

    def _send(
        self,
        outcome: Outcome,
        seq: int,
        ack: int,
        flags: int,
        data: bytes = b"",
        urgent: int = 0,
        options: bytes = b"",
        words: int = 5,
        spoil: int = 0,
    ) -> None:
        source, destination = socket.inet_aton(CLIENT), socket.inet_aton(SERVER)
        words += len(options) // 4
        tcp = (
            struct.pack(">HHIIBBHHH", self._port, PORT, seq, ack, words << 4, flags, 65_535, 0, urgent) + options + data
        )
        pseudo = source + destination + struct.pack(">HH", socket.IPPROTO_TCP, len(tcp))
        tcp = tcp[:16] + struct.pack(">H", (checksum(pseudo + tcp) + spoil) & 0xFFFF) + tcp[18:]
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, source, destination)
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        frame = self._ethernet + head + tcp
        outcome.packets.append((False, frame))
        os.write(self._wire, frame)

    def _drain(self, outcome: Outcome | None) -> list[Header]:
        """What the server has sent so far: its reply is there when `write` returns."""
        found: list[Header] = []
        while True:
            try:
                frame = os.read(self._wire, FRAME_BYTES)
            except BlockingIOError:
                return found
            header = decode(memoryview(frame), len(frame))
            if header is not None and int.from_bytes(header.destination_port, "big") == self._port:
                found.append(header)
                if outcome is not None:
                    outcome.packets.append((True, frame))


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total = int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
    return 0xFFFF - total
