# SPDX-License-Identifier: Apache-2.0
"""Addresses as they are in a flow key, and as the system of a network has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab
from signalled import Ended, ending, signal_ourselves
from tapmirror.supervisor import addresses
from tapmirror.supervisor.addresses import largest_packet, local_addresses, packed, port

needs_lab = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("10.0.0.1", bytes(10) + b"\xff\xff\x0a\0\0\1"),
        ("::ffff:10.0.0.1", bytes(10) + b"\xff\xff\x0a\0\0\1"),
        ("::1", bytes(15) + b"\1"),
        ("fe80::2%eth0", b"\xfe\x80" + bytes(13) + b"\2"),
    ],
)
def test_an_address_in_sixteen_bytes(address: str, wanted: bytes) -> None:
    assert packed(address) == wanted


@pytest.mark.parametrize("address", [("10.0.0.1", 80), ("::1", 80, 0, 0)])
def test_the_port_of_a_socket_address(address: tuple[Any, ...]) -> None:
    assert port(address) == 80


def test_what_the_kernel_refuses_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No such device"):
        largest_packet("no_such_one")


class Signalled:
    """A netlink socket of which a signal comes before it is open."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def __enter__(self) -> Signalled:
        signal_ourselves()
        self.done.append("opened")
        return self

    def get_addr(self) -> list[Any]:
        return []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.done.append(kind)


def test_a_signal_does_not_interrupt_what_asks_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    netlink = Signalled()
    monkeypatch.setattr(addresses, "IPRoute", lambda: netlink)
    with ending(), pytest.raises(Ended):
        local_addresses()
    assert netlink.done == ["opened", None]


@needs_lab
def test_the_largest_packet_of_an_interface(lab: Lab) -> None:
    with lab.node.enter():
        assert largest_packet("eth0") == largest_packet("lo") == 65_536
        lab.node.run(["ip", "link", "set", "dev", "eth0", "gro_max_size", "200000"])
        assert largest_packet("eth0") == 200_000
        lab.node.run(["ip", "link", "set", "dev", "eth0", "gro_max_size", "65536"])


@needs_lab
def test_local_addresses_are_those_of_the_network(lab: Lab) -> None:
    with lab.node.enter():
        found = {address for address in local_addresses()[0] if not address.startswith("fe80:")}
    assert {"127.0.0.1", "::1", "10.77.1.2", "fd77:1::2", "10.77.2.1", "fd77:2::1"} == found
