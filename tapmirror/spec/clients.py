# SPDX-License-Identifier: Apache-2.0
"""Which clients can be mirrored at all: the capture leaves out all others, which costs next to nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, TypeAlias

from tapmirror.spec.match import Match
from tapmirror.spec.tap import MAX_CLIENTS, TapSpec

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")


def captured_clients(tap: TapSpec) -> tuple[str, ...]:
    """The networks whose clients are captured; empty: all clients.

    These are the tap's own networks.  They are narrowed to those of its rules if every rule that mirrors is limited to
    some, and to those of its shadows if every shadow is; unless they would be too many for the capture program.
    """
    found: list[Network] | None = _merged(tap.clients) if tap.clients else None
    mirroring = [rule.match for rule in tap.rules if rule.mirror != ()]
    for groups in (mirroring, [shadow.match for shadow in tap.shadows]):
        wanted = _of_all(groups)
        if wanted is None:
            continue
        narrowed = wanted if found is None else [both for a in found for b in wanted if (both := _both(a, b))]
        if 0 < len(narrowed) <= MAX_CLIENTS:
            found = narrowed
    return tuple(map(str, found or ()))


def as_ranges(networks: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The (address, mask) of each network, in the 16 bytes of a flow key (IPv4 as ::ffff:a.b.c.d)."""
    ranges = []
    for text in networks:
        network = ipaddress.ip_network(text)
        front, ones = (bytes(10) + b"\xff\xff", b"\xff" * 12) if network.version == 4 else (b"", b"")
        ranges.append((front + network.network_address.packed, ones + network.netmask.packed))
    return ranges


def _of_all(groups: Iterable[tuple[Match, ...]]) -> list[Network] | None:
    """The networks of all alternatives; None: one of them takes any client, or there are none."""
    texts: list[str] = []
    for group in groups:
        if not group or not all(match.clients for match in group):
            return None
        texts += [text for match in group for text in match.clients]
    return _merged(texts) if texts else None


def _merged(texts: Iterable[str]) -> list[Network]:
    """The fewest networks that contain the same addresses."""
    known = [_plain(ipaddress.ip_network(text)) for text in texts]
    four = [network for network in known if isinstance(network, ipaddress.IPv4Network)]
    six = [network for network in known if isinstance(network, ipaddress.IPv6Network)]
    return [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]


def _plain(network: Network) -> Network:
    """The network; if it is one of mapped addresses, the IPv4 network that it stands for."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):  # type: ignore[arg-type]
        return ipaddress.ip_network((network.network_address.packed[12:], network.prefixlen - 96))
    return network


def _both(one: Network, other: Network) -> Network | None:
    """The addresses that are in both, as a network; None: there are none."""
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else None
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else None
    return None  # NOTE: an IPv6 network that has all mapped addresses in it (::/0) is not one of IPv4
