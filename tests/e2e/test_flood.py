# SPDX-License-Identifier: Apache-2.0
"""A flood of SYNs beside connections on which nobody has said anything yet."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from e2e.mirror import Line, Mirror, Talker, connect, dropped, endpoint
from lab import Lab
from lab.flood import syns, unanswering

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

SILENT = 20
SYNS = 100_000


def echo(line: Line) -> None:
    while piece := line.receive():
        line.send(piece)


@pytest.mark.apart
def test_silent_connections_are_mirrored_from_their_first_byte_on(lab: Lab) -> None:
    """Of raw bytes nothing would be, of a connection that is taken for one joined in mid-stream.

    Of the program alone: AF_PACKET may lose some of so many packets, and has `test_admission` for this.
    """
    with Talker(lab.node, 7000, echo), Talker(lab.shadow, 7001, echo) as shadow, unanswering(lab), ExitStack() as stack:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol="raw", capture="ebpf") as tap:
            clients = [stack.enter_context(connect(lab.client, lab.node.addr4, 7000)) for _ in range(SILENT)]
            syns(lab.client, lab.node.addr4, 7000, SYNS)
            for number, client in enumerate(clients):
                said = b"%d" % number
                client.sendall(said)
                assert client.recv(100) == said
                client.shutdown(socket.SHUT_WR)
            assert sorted(heard.data for heard in shadow.ended(SILENT)) == sorted(b"%d" % n for n in range(SILENT))
            ledger = tap.final()
        assert dropped(ledger) == {}
        assert ledger["events"]["kernel_syn"] == 2 * SYNS + SILENT
