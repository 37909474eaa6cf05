# SPDX-License-Identifier: Apache-2.0
"""What the translators share: a file that says what it lacks, and conditions that search."""

from __future__ import annotations

import re
from typing import Any

import pytest

from policy_cases import request, tap_of
from tapmirror.policy.match import matcher
from tapmirror.spec.document import FileError
from tapmirror.spec.reading import read_taps
from tapmirror.spec.translated import Translation, as_template, searched, whole_path

TAP: dict[str, Any] = {"iface": "eth0", "ports": [80], "shadows": [{"host": "a", "port": 80}]}


def test_the_file_reads_as_the_tap_with_what_it_lacks_as_comments() -> None:
    one = Translation([TAP])
    one.missing(7, "include", "is\nnot read " + "x " * 200)
    text = one.text("here")
    first, second, third = text.splitlines()[:3]
    assert first == "# Made from here." and second.startswith("# - 7: include: is\\nnot read x x")
    assert third.startswith("#   x x")
    assert read_taps(text.encode()) == read_taps(Translation([TAP]).text("x").encode())
    two = Translation([{**TAP, "name": "a"}, {**TAP, "name": "b"}]).text("x")
    assert [tap.name for tap in read_taps(two.encode())] == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["1e5", "-1E-5", ".5e+1", "1.e1", "1e5x", "12", "1:30", "0x1", "no", "<<", "=", "2024-01-01"]
)
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    tap = {**TAP, "protocol": "http", "shadows": [{"to": "a:80", "rewrite": {"set_headers": {"A": text}}}]}
    (read,) = read_taps(Translation([tap]).text("x").encode())
    assert read.shadows[0].rewrite.set_headers == {"A": text}


def test_nothing_is_written_as_an_alias() -> None:
    shared = {"set_headers": {"A": "1"}}
    tap = {**TAP, "shadows": [{"host": host, "port": 80, "rewrite": shared} for host in "ab"]}
    assert "&" not in Translation([tap]).text("x") and "*" not in Translation([tap]).text("x")


def test_what_is_no_tap_is_refused() -> None:
    with pytest.raises(FileError):
        Translation([{**TAP, "ports": [0]}]).check()


@pytest.mark.parametrize("expression", ["^/api", "/api", "v1$", "^/api/v1$", "^/a|b", "(?i)API", "p.v", r"\?x=1$", ""])
@pytest.mark.parametrize("path", ["/api/v1", "/x/api/v1", "/API", "/ab", "/apiv1", "/x?x=1", "/b"])
def test_an_expression_is_searched_for(expression: str, path: str) -> None:
    check = matcher(tap_of(rules=[{"match": {"target": searched(expression)}}]).rules[0].match)
    assert check is not None
    assert check(request(f"GET {path} HTTP/1.1")) is (re.search(expression, path) is not None)


def test_an_expression_that_is_none() -> None:
    with pytest.raises(ValueError, match="'\\(': missing"):
        searched("(")


def test_constants_for_templates_and_paths() -> None:
    assert as_template("a{b}") == "a{{b}}"
    assert whole_path(r"/a\1") == {"regex": "^.*$", "with": r"/a\\1"}
