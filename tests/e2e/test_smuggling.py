# SPDX-License-Identifier: Apache-2.0
"""Scenario 13: what tempts servers to disagree about boundaries, through a real one and a tap beside it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from e2e.mirror import PATIENCE, Mirror, connect, endpoint
from framing_cases import BROKEN, REFUSED, TAKEN
from lab import HashSink, Lab, Nginx, until

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf, pytest.mark.usefixtures("each_capture")]

NOT_NGINX = {"any-token-method", "options-asterisk"}
"""Valid, and refused by nginx 1.22."""
STREAMS = {
    **{name: b"".join(parts) for name, parts in TAKEN.items() if name not in NOT_NGINX},
    **REFUSED,
    **BROKEN,
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def test_the_shadow_gets_what_production_counted_or_less_and_never_other_requests(lab: Lab) -> None:
    """Each stream on a connection of its own, between two requests that are plain."""
    with Nginx(lab.node, log=True) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), protocol="http") as tap:
            for n, stream in enumerate(STREAMS.values()):
                plain = b"GET /plain/%d HTTP/1.1\r\nHost: a\r\n\r\n" % n
                with connect(lab.client, lab.node.addr4, 80) as client, contextlib.suppress(ConnectionError):
                    client.sendall(plain + stream + plain)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(1 << 16):
                        pass
            taken = sum(2 + len(TAKEN[name]) if name in TAKEN else 1 for name in STREAMS)
            until(lambda: sum(got.whole for got in [*shadow.got]) >= taken, "all that may be mirrored", PATIENCE)
            ledger = tap.final()
        read: dict[int, list[str]] = {}
        for line in production.logged():
            if line.status == 200:
                read.setdefault(line.connection, []).append(line.method)
        mirrored: dict[int, list[str]] = {}
        places: dict[int, int] = {}
        for got in shadow.got:
            if got.whole:
                mirrored.setdefault(got.connection, []).append(got.method)
                if got.uri.startswith("/plain/"):
                    places[got.connection] = int(got.uri.rpartition("/")[2])
    found = {list(STREAMS)[places[connection]]: methods for connection, methods in mirrored.items()}
    counted = dict(zip(STREAMS, (methods for _, methods in sorted(read.items())), strict=True))
    assert found == {name: counted[name] if name in TAKEN else ["GET"] for name in STREAMS}
    assert all(len(counted[name]) == len(TAKEN[name]) + 2 for name in STREAMS if name in TAKEN)
    assert shadow.bad == []
    assert set(ledger["bytes"]["dropped"]) == {"unparsed"}
