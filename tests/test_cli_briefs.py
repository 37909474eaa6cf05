# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

from briefs import brief
from lab.exchanges import Feed
from tapmirror.cli.briefs import brief_lines
from tapmirror.compare.summary import State

RAW = "1,234 connections that are not HTTP/1: mirrored as bytes, not compared"


def snapshot(shadows: dict[str, Any] | None, raw: int = 0) -> dict[str, Any]:
    return {"events": {"flows_raw": raw}, **({} if shadows is None else {"compare": {"shadows": shadows}})}


def test_a_line_for_each_shadow() -> None:
    found = Feed("broken").run(1500).comparison.brief()
    (line,) = brief_lines(snapshot(found))
    assert re.fullmatch(
        r"v2: 1,500 compared  [0-9.]+ % differ, worst GET /[^ ]* \([0-9.]+ %\)  errors [0-9.]+ % / [0-9.]+ %  "
        r"p99 x[0-9.]+  verdict so far: fail",
        line,
    )
    assert brief_lines(snapshot(found, 1234)) == [line, RAW]


def test_before_the_first_response() -> None:
    assert brief_lines(snapshot({"v2": brief(State(requests=1000))})) == ["v2: nothing compared yet of 1,000 requests"]


def test_a_tap_that_compares_nothing_has_none() -> None:
    assert brief_lines(snapshot(None, 1234)) == []
