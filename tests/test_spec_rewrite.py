# SPDX-License-Identifier: Apache-2.0
"""Nothing that would tear the stream or inject a field can be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.spec import Redact, Rewrite, SpecError
from tapmirror.spec.rewrite import FRAMING, PathRewrite


@pytest.mark.parametrize("name", [*sorted(FRAMING), "Content-Length", "TE", "a b", "a:", "", "a\r\nb"])
@pytest.mark.parametrize("group", ["set_headers", "add_headers", "remove_headers", "marker"])
def test_fields_that_cannot_be_changed(name: str, group: str) -> None:
    value = {"remove_headers": (name,), "marker": name}.get(group, {name: "x"})
    with pytest.raises(SpecError):
        Rewrite(**{group: value})  # type: ignore[arg-type]


@given(st.text(max_size=10), st.sampled_from("\r\n\0\x0b\x1f\x7f\u2028\xe9"), st.text(max_size=10))
def test_no_control_character_in_a_value(before: str, bad: str, after: str) -> None:
    with pytest.raises(SpecError):
        Rewrite(set_headers={"X": before + bad + after})


@pytest.mark.parametrize("host", ["a/b", "a\\b", "a@b", "{client}", ":80", "a:b", "[::1", "a\n", "a" * 256, ""])
def test_no_value_of_host(host: str) -> None:
    with pytest.raises(SpecError):
        Rewrite(host=host)


@pytest.mark.parametrize("host", ["keep", "shadow-suffix", "a.b_c", "a:80", "[::1]", "[2001:db8::1]:80", "10.0.0.1:1"])
def test_values_of_host(host: str) -> None:
    assert Rewrite(host=host).host == host


@pytest.mark.parametrize(
    ("regex", "becomes"),
    [("/a", r"/\1"), ("/(a)", r"/\2"), ("/a", r"/\g<x>"), ("/a", "/a\\"), ("/a", r"/\x"), (r"/\Qa", r"/\1")],
)
def test_replacements_that_could_not_be_made(regex: str, becomes: str) -> None:
    """Policy would find that out with the first request that matches."""
    with pytest.raises(SpecError) as caught:
        PathRewrite(regex=regex, becomes=becomes)
    assert [field for field, _ in caught.value.problems] == ["with"]


@pytest.mark.parametrize(
    ("regex", "becomes"), [("/(a)|b", r"/\1"), ("/(?P<x>a)", r"/\g<x>"), ("/\xe9", r"/\\1"), ("^", "/")]
)
def test_replacements(regex: str, becomes: str) -> None:
    assert PathRewrite(regex=regex, becomes=becomes).becomes == becomes


@pytest.mark.parametrize("path", ["vault.**", "**", "**.pass*", "a.b**", "cards[0].number", "cards[", "a.***.b"])
def test_paths_that_would_take_nothing_out(path: str) -> None:
    with pytest.raises(SpecError, match="steps are names"):
        Redact(json={path: "remove"})


@pytest.mark.parametrize("path", ["a", "user.email", "cards[].number", "**.password", "a.**.b[][].*", "[].x", "*.a b"])
def test_paths_of_members(path: str) -> None:
    assert Redact(json={path: "remove"}).json == {path: "remove"}
