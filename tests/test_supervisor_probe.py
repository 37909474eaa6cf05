# SPDX-License-Identifier: Apache-2.0
"""What looks for a loop: on the wire; what it finds is in test_supervisor_tap."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tapmirror.supervisor.probe import PROBE_TIME, Probe, syn


@pytest.mark.parametrize("layer", [IP(src="10.1.2.3", dst="10.4.5.6"), IPv6(src="fd00::1", dst="fd00::2")], ids=str)
@pytest.mark.parametrize("seq", [1, 0x12345678, 0xFFFFFFFF])
def test_the_syn_is_one_that_others_take(layer: IP | IPv6, seq: int) -> None:
    family = socket.AF_INET if isinstance(layer, IP) else socket.AF_INET6
    source, destination = (socket.inet_pton(family, end) for end in (layer.src, layer.dst))
    header = syn(source, destination, b"\x9c\x40\x00\x50", seq)
    found = TCP(header)
    assert (found.sport, found.dport, found.seq, found.flags) == (40_000, 80, seq, "S")
    assert found.options == [("MSS", 1460)]
    del found.chksum
    assert bytes(type(layer)(bytes(layer / found)).payload) == header, "as scapy has the checksum"


@pytest.mark.e2e
@pytest.mark.parametrize(("ends", "code"), [("dl", None), ("ld", None), ("dd", errno.ECONNREFUSED), ("l", None)])
def test_one_address_that_answers_is_enough(ends: str, code: int | None) -> None:
    """All are tried, and why none of them answers is told."""
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and does not listen
        addresses = [(socket.AF_INET, (alive if end == "l" else dead).getsockname()) for end in ends]
        with contextlib.closing(Probe(addresses, 1)) as probe:
            while not probe.over(PROBE_TIME):
                pass
            assert (probe.failure and probe.failure.errno) == code
