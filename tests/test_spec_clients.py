# SPDX-License-Identifier: Apache-2.0
"""Which clients are captured: all that could be mirrored, and where it can be said no others."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_cases import Tried, head, tap_of
from tapmirror.spec import SpecError, TapSpec
from tapmirror.spec.clients import as_ranges, captured_clients
from tapmirror.spec.document import FileError
from tapmirror.spec.tap import MAX_CLIENTS

TEN, NEAR = {"match": {"clients": ["10.0.0.0/8"]}}, {"match": {"clients": ["10.1.0.0/16"]}}
ANY = {"match": {"path": {"prefix": "/"}}}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, ()),
        ({"clients": ["10.0.0.0/9", "10.128.0.0/9", "2001:db8::/32"]}, ("10.0.0.0/8", "2001:db8::/32")),
        ({"clients": ["::ffff:10.0.0.0/104"]}, ("10.0.0.0/8",)),
        ({"rules": [TEN]}, ("10.0.0.0/8",)),
        ({"rules": [TEN, {"match": {"clients": ["192.0.2.7"]}}]}, ("10.0.0.0/8", "192.0.2.7/32")),
        ({"rules": [TEN, ANY]}, ()),
        ({"rules": [TEN, {}]}, ()),
        ({"rules": [{**ANY, "mirror": "none"}, TEN]}, ("10.0.0.0/8",)),
        ({"rules": [{"match": [{"clients": ["10.0.0.0/8"]}, {"methods": ["GET"]}]}]}, ()),
        ({"rules": [TEN], "clients": ["10.1.0.0/16", "192.0.2.0/24"]}, ("10.1.0.0/16",)),
        ({"rules": [NEAR], "clients": ["10.0.0.0/8"]}, ("10.1.0.0/16",)),
        ({"rules": [NEAR], "clients": ["192.0.2.0/24"]}, ("192.0.2.0/24",)),  # nobody: user space tells
        ({"shadows": [{"to": "a:1", **TEN}, {"to": "b:1", **NEAR}]}, ("10.0.0.0/8",)),
        ({"shadows": [{"to": "a:1", **TEN}, "b:1"]}, ()),
        ({"rules": [{"match": {"clients": [f"10.{n}.0.0/24" for n in range(MAX_CLIENTS + 1)]}}]}, ()),
        ({"clients": ["10.0.0.0/8"], "protocol": "raw"}, ("10.0.0.0/8",)),
    ],
)
def test_who_is_captured(spec: dict[str, Any], wanted: tuple[str, ...]) -> None:
    assert captured_clients(tap_of(**spec)) == wanted


NETWORKS = st.tuples(st.integers(0, 255), st.integers(24, 32)).map(
    lambda found: str(ipaddress.ip_network((int(ipaddress.ip_address("10.0.0.0")) + found[0], found[1]), strict=False))
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "match": st.lists(st.fixed_dictionaries({}, optional={"clients": st.lists(NETWORKS, max_size=2)}), max_size=2),
        "mirror": st.sampled_from(["none", "all"]),
    },
)


@given(st.lists(NETWORKS, max_size=2), st.lists(RULES, max_size=3), st.integers(0, 255))
def test_whoever_is_mirrored_is_captured(own: list[str], rules: list[dict[str, Any]], last: int) -> None:
    found = Tried(rules=rules, clients=own)
    client = f"10.0.0.{last}"
    (got,) = found.ask(head(), found.open(client))
    allowed = not own or any(ipaddress.ip_address(client) in ipaddress.ip_network(text) for text in own)
    captured = captured_clients(found.spec)
    if got is not None and allowed and captured:
        assert any(ipaddress.ip_address(client) in ipaddress.ip_network(text) for text in captured)


def test_ranges_are_those_of_a_flow_key() -> None:
    (four, six) = as_ranges(["10.0.0.0/8", "2001:db8::/32"])
    assert four == (bytes(10) + b"\xff\xff\x0a\0\0\0", b"\xff" * 13 + bytes(3))
    assert six == (b"\x20\x01\x0d\xb8" + bytes(12), b"\xff" * 4 + bytes(12))


def test_what_is_no_network_and_too_many() -> None:
    with pytest.raises(FileError, match=r"clients\[1\]: 10.0.0.1/8 has host bits set"):
        tap_of(clients=["10.0.0.0/8", "10.0.0.1/8"])
    with pytest.raises(SpecError, match="at most 32 networks, not 33"):
        TapSpec(iface="lo", ports=(80,), shadows=tap_of().shadows, clients=("10.0.0.1",) * 33)
