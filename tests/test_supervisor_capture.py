# SPDX-License-Identifier: Apache-2.0
"""What workers read from, opened as the spec wants.  What comes through it: `test_source_live`, `test_loader`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest

from lab import Host, Lab
from tapmirror import loader
from tapmirror.source.live import PACKET_STATISTICS
from tapmirror.source.packet_ring import SOL_PACKET
from tapmirror.spec import Capture, TapSpec, parse_shadow
from tapmirror.supervisor.capture import OpenCapture, open_capture
from tapmirror.supervisor.workers import TapError

SPEC = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:1"),))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        for host in (built.client, built.node, built.shadow):  # they solicit routers, which would be counted too
            host.sysctl("ipv6.conf.all.disable_ipv6", 1)
        yield built


def opened(lab: Lab, said: list[str], workers: int = 1, **more: Any) -> OpenCapture:
    spec = msgspec.structs.replace(SPEC, **more)
    with lab.node.enter():
        return open_capture(spec, workers, excluded=[], threshold=1 << 32, probe=1, warn=said.append)


def refusing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def load(request: loader.Request) -> loader.Loaded:
        raise loader.LoaderError(kind, "it cannot be loaded")

    monkeypatch.setattr(loader, "load", load)


def inodes(fds: list[int]) -> list[int]:
    found = [os.fstat(fd).st_ino for fd in fds]
    for fd in fds:
        os.close(fd)
    return found


@pytest.mark.parametrize(("capture", "kind"), [(Capture.EBPF, "refused"), (Capture.AUTO, "contract")])
def test_where_the_program_is_wanted_or_other_files_are_installed_nothing_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, capture: Capture, kind: str
) -> None:
    refusing(monkeypatch, kind)
    spec = msgspec.structs.replace(SPEC, capture=capture)
    said: list[str] = []
    with pytest.raises(TapError, match=r"^it cannot be loaded$"):
        open_capture(spec, 1, excluded=[], threshold=0, probe=1, warn=said.append)
    assert said == []


@pytest.mark.e2e
@pytest.mark.ebpf
def test_else_packet_sockets_do_and_that_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "refused")
    said: list[str] = []
    with closing(opened(lab, said)) as capture:
        assert not capture.is_ebpf and capture.block_bytes > 0
    assert said == ["it cannot be loaded; capturing through AF_PACKET instead"]


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("kind", [Capture.EBPF, Capture.PACKET])
def test_each_worker_reads_from_its_own_and_a_successor_from_the_same(lab: Lab, kind: Capture) -> None:
    with closing(opened(lab, [], workers=2, capture=kind)) as capture:
        first, second, again = (capture.worker_fds(shard) for shard in (0, 1, 0))
        assert capture.is_ebpf is (kind is Capture.EBPF)
        assert len({*first, *second, *again}) == len(first) * 3, "each has descriptors of its own"
        if kind is Capture.PACKET:
            (one,), (other,), (same,) = map(inodes, (first, second, again))
            assert one == same != other
        else:
            for fd in (*first, *second, *again):
                os.close(fd)


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("workers", "iface", "decap"), [(1, "eth0", False), (2, "eth0", False), (1, "eth*", False), (1, "eth*", True)]
)
def test_by_packet_sockets_the_kernel_lets_in_what_comes_from_held_interfaces(
    lab: Lab, workers: int, iface: str, decap: bool
) -> None:
    """And nothing from others, also where a socket is bound to all: whoever reads it looks no more."""
    options = {"capture": Capture.PACKET, "iface": iface, "decap": decap}
    with closing(opened(lab, [], workers, **options)) as capture, lab.node.enter():
        sockets = [socket.socket(fileno=fd) for shard in range(workers) for fd in capture.worker_fds(shard)]

        def came(client: Host, address: str) -> int:
            with client.enter(), socket.socket() as sock:
                sock.connect_ex((address, 80))  # refused: a SYN and a RST
            found = [sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12) for sock in sockets]
            return sum(int.from_bytes(each[:4], sys.byteorder) for each in found)

        def all_came() -> tuple[int, int]:
            return came(lab.client, "10.77.1.2"), came(lab.shadow, "10.77.2.1")

        all_came()  # neighbours are known from then on, and nobody asks for them again
        for host in (lab.client, lab.node, lab.shadow):
            for each in host.json("ip", "-j", "neigh"):
                place = (each["dst"], "lladdr", each["lladdr"], "dev", each["dev"])
                host.run(["ip", "neigh", "replace", *place, "nud", "permanent"])
        hold = capture.hold("eth0")
        assert all_came() == (2, 0)
        if iface == "eth*":
            other = capture.hold("eth1")
            assert all_came() == (2, 2)
            other.close()
            assert all_came() == (2, 0)
        hold.close()
        assert all_came() == (0, 0)
        for sock in sockets:
            sock.close()
