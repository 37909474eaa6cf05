# SPDX-License-Identifier: Apache-2.0
"""End points and names of shadows."""

from __future__ import annotations

import pytest

from tapmirror.spec import Shadow, parse_shadow
from tapmirror.spec.errors import SpecError


@pytest.mark.parametrize("host", ["a/b", "a@b", "10.0.0.1:80", "http://a", "[::1]", "a b", "a\n", "a%", ""])
def test_no_hosts(host: str) -> None:
    with pytest.raises(SpecError):
        Shadow(host=host, port=80)


@pytest.mark.parametrize("host", ["a", "a_b.c-d", "bücher.test", "10.0.0.1", "::1", "fe80::1%eth0"])
def test_hosts(host: str) -> None:
    assert Shadow(host=host, port=80).host == host


@pytest.mark.parametrize("text", ["a.b:80", "10.0.0.1:8080", "[2001:db8::1]:80"])
def test_end_points_are_written_as_they_are_read(text: str) -> None:
    shadow = parse_shadow(text)
    assert shadow.end_point == shadow.label == text
    assert parse_shadow(text, name="new").label == "new"
    assert parse_shadow(text, copies=2) == Shadow(host=shadow.host, port=shadow.port, copies=2)


def test_copies_have_labels_of_their_own() -> None:
    assert parse_shadow("s.test:80").copy_labels == ("s.test:80",)
    assert parse_shadow("s.test:80", name="v2", copies=3).copy_labels == ("v2", "v2#2", "v2#3")
