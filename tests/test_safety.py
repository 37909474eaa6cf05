# SPDX-License-Identifier: Apache-2.0
"""A shadow that is production is refused, by whatever address it is named."""

from __future__ import annotations

import pytest

from tapmirror.safety import refusal

LOCAL = ["127.0.0.1", "::1", "10.0.0.2", "10.0.0.3", "2001:db8::2", "fe80::1"]


@pytest.mark.parametrize(
    ("ports", "addrs", "shadow", "port", "refused"),
    [
        ([80], [], "10.0.0.9", 80, False),
        ([80], [], "10.0.0.2", 81, False),
        ([80], [], "10.0.0.2", 80, True),
        ([80], [], "10.0.0.3", 80, True),
        ([80], [], "127.0.0.1", 80, True),
        ([80], [], "127.9.9.9", 80, True),
        ([80], [], "::ffff:10.0.0.2", 80, True),
        ([80], [], "::1", 80, True),
        ([80], [], "fe80::1%eth0", 80, True),
        ([80, 81], [], "2001:db8::2", 81, True),
        ([80], ["10.0.0.2"], "10.0.0.2", 80, True),
        ([80], ["10.0.0.2"], "::ffff:10.0.0.2", 80, True),
        ([80], ["10.0.0.2"], "10.0.0.3", 80, False),
        ([80], [], "224.0.0.1", 81, True),
        ([80], [], "255.255.255.255", 81, True),
        ([80], [], "0.0.0.0", 81, True),
        ([80], [], "::", 81, True),
    ],
)
def test_refusal(ports: list[int], addrs: list[str], shadow: str, port: int, refused: bool) -> None:
    assert (refusal(ports, addrs, shadow, port, LOCAL) is not None) == refused
