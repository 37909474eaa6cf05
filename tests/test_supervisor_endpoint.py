# SPDX-License-Identifier: Apache-2.0
"""The end point answers Prometheus, and nobody can hold it."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from lab import PATIENCE, until
from tapmirror.supervisor.endpoint import LOOPBACK, PLACES, Endpoint, EndpointError, parse_address
from tapmirror.supervisor.metrics import TapMetrics

CALLS: list[float] = []


def taps() -> list[dict[str, Any]]:
    CALLS.append(time.monotonic())
    return [{"tap": "shop", "state": "running"}]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    CALLS.clear()
    made = Endpoint(TapMetrics(taps).registry(), LOOPBACK, 0)
    yield made
    made.close()


def talk(endpoint: Endpoint, request: bytes) -> bytes:
    """Send, and read to the end."""
    with socket.create_connection(endpoint.address, PATIENCE) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def scrape(endpoint: Endpoint) -> bytes:
    return talk(endpoint, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


def test_prometheus_gets_openmetrics(endpoint: Endpoint) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{endpoint.address[1]}/metrics",
        headers={"Accept": "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
        families = list(text_string_to_metric_families(reply.read().decode()))  # type: ignore[no-untyped-call]
    assert {"tapmirror_build", "tapmirror_tap_state"} <= {family.name for family in families}


def test_everybody_else_gets_plain_text(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.address[1]}/metrics", timeout=PATIENCE) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        assert list(parse_plain(reply.read().decode()))


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1", b"200"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"HEAD /metrics HTTP/1.1", b"200"),
        (b"\xff\xfe", b"405"),
        (b"", b"405"),
    ],
)
def test_requests(endpoint: Endpoint, request_line: bytes, status: bytes) -> None:
    reply = talk(endpoint, request_line + b"\r\n\r\n")
    assert reply.split(b" ")[1] == status
    assert (reply.partition(b"\r\n\r\n")[2] == b"") == request_line.startswith(b"HEAD")


def test_a_head_without_end_is_cut_off_for_its_length(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapmirror.supervisor.endpoint.PATIENCE", 10 * PATIENCE)
    with (
        socket.create_connection(endpoint.address, PATIENCE) as sock,
        pytest.raises(OSError, match=r"reset|Broken pipe"),
    ):
        sock.sendall(b"x" * (64 << 20))
    assert b" 200 " in scrape(endpoint)


def test_slowloris_holds_nobody(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody is cut off for being slow."""
    monkeypatch.setattr("tapmirror.supervisor.endpoint.PATIENCE", 10 * PATIENCE)
    held = []
    try:
        for _ in range(20 * PLACES):
            held.append(socket.create_connection(endpoint.address, PATIENCE))
            held[-1].sendall(b"GET /metrics HTTP/1.1\r\n")
            if len(held) % PLACES == 0:
                assert b" 200 " in scrape(endpoint)
                assert endpoint.connections() <= PLACES
    finally:
        for sock in held:
            sock.close()


def test_one_that_does_not_read_its_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapmirror.supervisor.endpoint.PATIENCE", 0.2)
    many = [{"tap": f"tap{i}", "state": "running"} for i in range(20_000)]
    endpoint = Endpoint(TapMetrics(lambda: many).registry(), LOOPBACK, 0)
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(endpoint.address)
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            sock.recv(1)
            until(lambda: not endpoint.connections(), "the end of the connection")
    finally:
        endpoint.close()


def test_the_text_is_made_once_a_second(endpoint: Endpoint) -> None:
    began = time.monotonic()
    for _ in range(2000):
        assert b" 200 " in scrape(endpoint)
    assert len(CALLS) <= time.monotonic() - began + 2


def test_closed_twice_and_the_port_is_free_again(endpoint: Endpoint) -> None:
    with socket.create_connection(endpoint.address, PATIENCE):  # somebody is in the midst of something
        endpoint.close()
    endpoint.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(endpoint.address, PATIENCE)


def test_a_taken_port_is_one_line(endpoint: Endpoint) -> None:
    with pytest.raises(EndpointError, match=r"^metrics: cannot listen at 127.0.0.1 port \d+: Address already in use$"):
        Endpoint(CollectorRegistry(), *endpoint.address)


@pytest.mark.parametrize(
    ("text", "address"),
    [("9464", (LOOPBACK, 9464)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:9464", ("::1", 9464))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "65536", "localhost:80", "::1:80", "[x]:80", "1.2.3:80", "-1", "²"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r" is not PORT or ADDRESS:PORT$"):
        parse_address(text)


def test_figures_that_cannot_be_text_do_not_end_it() -> None:
    bad = {"tap": "shop", "segments": {"seen": []}}
    found: list[dict[str, Any]] = [bad]
    made = Endpoint(TapMetrics(lambda: found).registry(), LOOPBACK, 0)
    try:
        assert scrape(made).startswith(b"HTTP/1.1 500 ")
        found[:] = [{"tap": "shop", "state": "running"}]
        assert scrape(made).startswith(b"HTTP/1.1 200 ")
    finally:
        made.close()
