# SPDX-License-Identifier: Apache-2.0
"""The daemon's metrics, and who scrapes them."""

from __future__ import annotations

import re
import socket
import urllib.request

import pytest

from e2e.served import WEB, under_load, untorn, web
from lab import (
    PATIENCE,
    HashSink,
    Lab,
    until,
)
from lab.daemon import Daemon
from tapmirror.control.messages import Start

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def test_metrics_are_served(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, more=("--metrics=9464",)) as daemon:
        daemon.run(*WEB)
        until(lambda: daemon.json("status")["taps"][0]["ledger"] is not None, "a ledger")
        with lab.node.enter():
            read = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=PATIENCE).read().decode()
        assert re.search(r'^tapmirror_tap_state\{[^}]*state="running"[^}]*\} 1', read, re.M)


def test_whoever_scrapes_changes_nothing_of_the_mirroring(lab: Lab) -> None:
    """Scenario 39: as fast as it goes, beside clients that never read and heads that never end."""
    with Daemon(lab.node, more=("--metrics=9464",)) as daemon, under_load(lab) as (production, shadow, running):
        daemon.ask(Start(taps=[web()]))
        until(lambda: len(shadow.got) > 200, "all connections are mirrored")
        before = len(production.got)
        at = ("127.0.0.1", 9464)
        with lab.node.enter():
            held = [socket.create_connection(at) for _ in range(40)]
            for i, sock in enumerate(held):
                sock.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"\r\n" if i % 2 else b"X-Slow: "))
            first = {*series(at)}
            for _ in range(2000):
                last = {*series(at)}
        assert running.stop().failed == 0
        until(lambda: not {got.uri for got in production.got[before:]} - {got.uri for got in shadow.got}, "every one")
        untorn(production, shadow)
        assert len(last) <= len(first) + 100  # no label is of the traffic
        assert daemon.json("list")["taps"][0]["losses"] == 0
        for sock in held:
            sock.close()


def series(at: tuple[str, int]) -> list[str]:
    """The names, with their labels, of a scrape; none: it was turned away."""
    with socket.create_connection(at, timeout=PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        lines = file.read().decode().splitlines()
    return [line.rpartition(" ")[0] for line in lines if line.startswith("tapmirror_")]
