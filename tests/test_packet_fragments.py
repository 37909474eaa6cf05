# SPDX-License-Identifier: Apache-2.0
"""Fragments: scapy cuts the datagrams."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrFragment, Raw, fragment, fragment6

from tapmirror.packet.fragments import DATAGRAMS, HELD_BYTES, PIECES, WAIT, Fragments
from tapmirror.packet.header import network

BODY = bytes(range(256)) * 12
V4 = IP(src="10.0.0.1", dst="10.0.0.2", id=7) / TCP(dport=80) / Raw(BODY)
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(id=7) / TCP(dport=80) / Raw(BODY)


def pieces4(packet: Any = V4, size: int = 512) -> list[bytes]:
    return [bytes(piece) for piece in fragment(packet, fragsize=size)]


def pieces6(size: int = 600) -> list[bytes]:
    return [bytes(piece) for piece in fragment6(V6, size)]


def put(fragments: Fragments, packet: bytes, now: float = 0.0, cut: int | None = None) -> bytes | None:
    found = network(memoryview(packet)[:cut], 0, len(packet), 0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    assert found is not None and found.piece is not None
    whole = fragments.add(memoryview(packet)[:cut], found, now)
    return None if whole is None else bytes(whole[0])


def feed(packets: list[bytes]) -> tuple[list[bytes], Fragments]:
    fragments = Fragments()
    return [whole for packet in packets if (whole := put(fragments, packet)) is not None], fragments


def piece(place: int, data: bytes, *, more: bool = True, six: bool = False, ident: int = 7) -> bytes:
    if six:
        head = IPv6(src="::1", dst="::2") / IPv6ExtHdrFragment(id=ident, offset=place // 8, m=more, nh=6)
    else:
        head = IP(src="10.0.0.1", dst="10.0.0.2", id=ident, frag=place // 8, flags="MF" if more else "", proto=6)
    return bytes(head / Raw(data))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pieces", [pieces4(), pieces6()], ids=["IPv4", "IPv6"])
def test_whole_datagram(pieces: list[bytes], order: int) -> None:
    found, fragments = feed(pieces[::order])
    assert len(pieces) > 4
    assert [whole[20:] for whole in found] == [BODY]
    assert (len(fragments), fragments.discarded) == (0, 0)


@given(st.permutations(range(7)), st.lists(st.integers(0, 6), max_size=4))
def test_any_order_and_repetition(order: list[int], again: list[int]) -> None:
    pieces = pieces4()
    assert len(pieces) == 7
    found, _ = feed([pieces[n] for n in [*again, *order]])
    assert found[0][20:] == BODY


def test_datagrams_are_told_apart() -> None:
    one, two = pieces4(), pieces4(IP(src="10.0.0.1", dst="10.0.0.2", id=8) / TCP(dport=80) / Raw(BODY[::-1]))
    mixed = [packet for pair in zip(one, two, strict=True) for packet in pair]
    assert [whole[20:] for whole in feed(mixed)[0]] == [BODY, BODY[::-1]]
    other = pieces4(IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(dport=80) / Raw(BODY))
    assert len(feed([*one[:-1], *other])[0]) == 1


OVERLAPS = {
    "the more recent copy (RFC 791)": (
        [(0, b"a" * 16, True), (8, b"b" * 16, True), (24, b"c", False)],
        b"a" * 8 + b"b" * 16 + b"c",
    ),
    "inside another": (
        [(0, b"a" * 24, True), (8, b"b" * 8, True), (24, b"c", False)],
        b"a" * 8 + b"b" * 8 + b"a" * 8 + b"c",
    ),
    "over several": (
        [(8, b"b" * 8, True), (24, b"d" * 8, True), (0, b"a" * 40, True), (40, b"c", False)],
        b"a" * 40 + b"c",
    ),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_of_ipv4(name: str) -> None:
    parts, wanted = OVERLAPS[name]
    assert feed([piece(place, data, more=more) for place, data, more in parts])[0] == [wanted]


def test_an_overlap_discards_a_datagram_of_ipv6() -> None:
    parts = [piece(0, b"a" * 16, six=True), piece(8, b"b" * 16, six=True), piece(24, b"c", more=False, six=True)]
    found, fragments = feed(parts)
    assert (found, fragments.discarded) == ([], 3)


def test_a_repeated_piece_of_ipv6_is_none() -> None:
    parts = [piece(0, b"a" * 16, six=True), piece(8, b"b" * 8, six=True), piece(16, b"c", more=False, six=True)]
    assert feed(parts)[0] == [b"a" * 16 + b"c"]


@pytest.mark.parametrize("six", [False, True])
def test_each_fragment_counts_also_where_others_cover_it(six: bool) -> None:
    _, fragments = feed(
        [piece(0, b"a" * 24, six=six), *[piece(8, b"b" * 8, six=six)] * 2, piece(0, b"c" * 24, six=six)]
    )
    assert (len(fragments), fragments.discarded) == (4, 0)
    put(fragments, piece(32, b"d" * 7, six=six))
    assert (len(fragments), fragments.discarded) == (0, 5)


def test_what_is_not_whole_at_the_end_is_given_up() -> None:
    first, *rest = pieces4()
    _, fragments = feed([*rest, piece(0, b"a" * 8, ident=8)])
    fragments.give_up()
    assert (len(fragments), fragments.discarded) == (0, len(rest) + 1)
    assert put(fragments, first) is None


CONTRADICTIONS = {
    "two ends": [piece(0, b"a" * 8), piece(16, b"b", more=False), piece(24, b"c", more=False), piece(8, b"d" * 8)],
    "beyond the end": [piece(8, b"b", more=False), piece(16, b"c" * 8), piece(0, b"a" * 8)],
    "end before what is there": [piece(16, b"c" * 8), piece(8, b"b", more=False), piece(0, b"a" * 8)],
    "no multiple of 8": [piece(0, b"a" * 7), piece(8, b"b", more=False)],
    "nothing": [piece(0, b""), piece(8, b"b", more=False)],
    "too long": [piece(65_528, b"a" * 16, more=False), piece(0, b"a" * 8)],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    found, fragments = feed(CONTRADICTIONS[name])
    assert found == []
    assert fragments.discarded + len(fragments) == len(CONTRADICTIONS[name])


def test_a_piece_that_the_capture_cut() -> None:
    fragments = Fragments()
    first, *rest = pieces4()
    assert put(fragments, first, cut=100) is None
    assert all(put(fragments, packet) is None for packet in rest)
    assert fragments.discarded == 1 + len(rest)


def test_too_late() -> None:
    fragments = Fragments()
    *first, last = pieces4()
    for packet in first:
        put(fragments, packet, 0.0)
    assert put(fragments, last, WAIT + 1) is None
    assert (len(fragments), fragments.discarded) == (1, len(first))


def test_bounds() -> None:
    fragments = Fragments()
    for n in range(DATAGRAMS * 2):
        put(fragments, piece(0, b"a" * 8, ident=n))
    assert (len(fragments), fragments.discarded) == (DATAGRAMS, DATAGRAMS)
    size = 8_192
    for n in range(2 * HELD_BYTES // size):
        put(fragments, piece(0, b"a" * size, ident=n))
        assert len(fragments) <= DATAGRAMS
    assert fragments.discarded >= HELD_BYTES // size
    fragments = Fragments()
    for n in range(PIECES * 2):
        put(fragments, piece(16 * n, b"a" * 8))
    assert fragments.discarded == PIECES * 2
