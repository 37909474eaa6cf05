# SPDX-License-Identifier: Apache-2.0
"""Few closed connections keep their port: as the kernel sees it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapmirror.replay import ports
from tapmirror.replay.ports import (
    DEFAULT_PORTS,
    GENTLE_CLOSES,
    TIME_WAIT,
    Ports,
    ephemeral_ports,
    gentle_closes,
    open_connections,
    quiet_since,
    reset_on_close,
    response_finished,
    sent_to_the_last,
)
from tapmirror.replay.tls import TlsSocket


def resets(sock: socket.socket) -> bool:
    """Whether `close` would send an RST."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)


@pytest.mark.parametrize(
    ("ports", "parts", "gentle"),
    [
        (DEFAULT_PORTS, 1, GENTLE_CLOSES),
        (DEFAULT_PORTS, 3, GENTLE_CLOSES // 3),
        (DEFAULT_PORTS, GENTLE_CLOSES * 2, 1),
        (64_512, 1, GENTLE_CLOSES),
        (1_000, 1, 145),
        (1_000, 2, 72),
    ],
)
def test_beyond_so_many_closes_a_minute_connections_are_reset(ports: int, parts: int, gentle: int) -> None:
    spared = Ports(gentle_closes(ports, parts))
    with socket.socket() as soft, socket.socket() as hard, socket.socket() as later:
        for _ in range(gentle):
            spared.spare(soft, 100.0)
        assert not resets(soft)
        spared.spare(hard, 100.0 + TIME_WAIT / 2)
        assert resets(hard)
        spared.spare(later, 100.0 + TIME_WAIT)
        assert not resets(later)


@pytest.mark.parametrize(
    ("text", "ports"),
    [("32768\t60999\n", 28_232), ("40000\t40999\n", 1_000), ("", DEFAULT_PORTS), (None, DEFAULT_PORTS)],
)
def test_the_ports_that_the_host_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, ports: int
) -> None:
    monkeypatch.setattr("tapmirror.replay.ports.RANGE", tmp_path / "range")
    if text is not None:
        (tmp_path / "range").write_text(text, encoding="ascii")
    assert ephemeral_ports() == ports


@pytest.mark.parametrize(("ports", "parts", "most"), [(28_232, 1, 14_116), (1_000, 1, 500), (1_000, 4, 125), (1, 4, 1)])
def test_half_of_the_ports_stay_the_hosts(ports: int, parts: int, most: int) -> None:
    assert open_connections(ports, parts) == most


def test_a_reset_leaves_no_port_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for reset in (False, True):
            sock = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
            if reset:
                reset_on_close(sock)
            ends = sock.getsockname()[1], sock.getpeername()[1]
            sock.close()
            peer.close()
            assert _in_time_wait(*ends) is not reset


def test_what_has_left_and_what_has_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        sock.send(b"a few")
        assert sent_to_the_last(sock)
        sock.setblocking(False)
        with peer:
            with contextlib.suppress(BlockingIOError):
                while sock.send(bytes(1 << 20)):
                    pass
            assert not sent_to_the_last(sock)
            assert not select.select([], [sock], [], 0)[1]
            while not select.select([], [sock], [], 0)[1]:
                assert peer.recv(1 << 20)
            assert sent_to_the_last(sock)


def _in_time_wait(port: int, peer: int) -> bool:
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table][1:]
    return any(row[1].endswith(f":{port:04X}") and row[2].endswith(f":{peer:04X}") and row[3] == "06" for row in rows)


def test_production_keeps_most_of_the_ephemeral_ports() -> None:
    assert ports.GENTLE_CLOSES * 4 < 60_999 - 32_768


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our side of a connection, and the shadow's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        peer, _ = listener.accept()
        with peer:
            yield sock, peer


def asked_in_one_tick(sock: socket.socket, peer: socket.socket) -> bool:
    """A response comes, something is sent; whether the kernel's clock tells one from the other (`tcp_info`)."""
    peer.send(b"pong")
    select.select([sock], [], [])
    sock.send(b"ping")
    sent, came = struct.unpack("=44xI4xI", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56))
    return bool(sent == came)


@pytest.mark.parametrize("same", [True, False])
def test_a_response_of_the_tick_in_which_was_sent_counts_after_a_longer_silence(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """And one that came before does not count."""
    monkeypatch.setattr(ports, "DOUBT", 60_000)
    sock, peer = pair
    while asked_in_one_tick(sock, peer) is not same:
        time.sleep(0.001)
    time.sleep(0.1)  # more than SILENCE
    assert not response_finished(sock)
    monkeypatch.setattr(ports, "DOUBT", 300)
    time.sleep(0.3)
    assert response_finished(sock) is same
    peer.send(b"pong")
    time.sleep(0.1)
    assert response_finished(sock)


@pytest.mark.parametrize("came", ["before", "in the tick", "after"])
def test_only_what_was_long_before_is_certain_not_to_have_come_since(
    pair: tuple[socket.socket, socket.socket], came: str
) -> None:
    sock, peer = pair
    if came == "after":
        sock.send(b"ping")
    else:
        while asked_in_one_tick(sock, peer) is not (came == "in the tick"):
            time.sleep(0.001)
    time.sleep(0.05)
    if came == "after":
        peer.send(b"pong")
        select.select([sock], [], [])
    peer.recv(1 << 16)  # else it would end with an RST
    peer.close()
    select.select([sock], [], [])
    assert quiet_since(sock) is (came == "before")
    secured = TlsSocket(sock, ssl.create_default_context(), "new.test")
    assert not quiet_since(secured)  # the bytes of its end would have come since
    secured.close()
