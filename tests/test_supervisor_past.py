# SPDX-License-Identifier: Apache-2.0
"""Lives that are over: what the metrics have of them, and how much room that takes."""

from __future__ import annotations

from typing import Any

import pytest

from tapmirror.supervisor import past
from tapmirror.supervisor.past import Past


def ledger(tap: str, *, compared: int = 0, counted: int = 0) -> dict[str, Any]:
    """With so many characters in each part."""
    found: dict[str, Any] = {"tap": tap, "events": {"x" * counted: 1}}
    return {**found, "compare": {"x" * compared: 1}} if compared else found


def test_what_comes_out_is_what_went_in() -> None:
    lives = Past(lambda *_: None)
    whole = {"tap": "é", "segments": {"seen": 3 << 63}, "cpu_s": 0.25, "compare": {"shadows": {"v2": {"pairs": 1}}}}
    lives.remember(1, whole)
    lives.remember(2, ledger("b"))
    assert lives.ledgers() == [{**whole, "life": 1, "over": True}, {**ledger("b"), "life": 2, "over": True}]


def test_all_together_have_a_bound_and_the_oldest_comparison_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "HELD", 10_000)
    gone: list[tuple[str, str]] = []
    lives = Past(lambda *found: gone.append(found))
    lives.remember(1, ledger("plain"))
    for n in range(2, 5):
        lives.remember(n, ledger(f"t{n}", compared=4000))
    assert gone == [("t2", "what it compared")] and 8000 < lives.held <= 10_000
    assert [(each["tap"], "compare" in each) for each in lives.ledgers()] == [
        ("plain", False),
        ("t2", False),
        ("t3", True),
        ("t4", True),
    ]


def test_where_no_comparison_is_left_the_oldest_life_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "HELD", 10_000)
    gone: list[tuple[str, str]] = []
    lives = Past(lambda *found: gone.append(found))
    lives.remember(1, ledger("a", counted=6000, compared=3000))
    lives.remember(2, ledger("b", counted=6000, compared=3000))
    assert gone == [("a", "what it compared"), ("b", "what it compared"), ("a", "what it counted")]
    assert [each["tap"] for each in lives.ledgers()] == ["b"] and lives.held <= 10_000
    lives.remember(3, ledger("c", counted=20_000))
    assert lives.ledgers() == [] and lives.held == 0


def test_there_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "LIVES", 3)
    lives = Past(lambda *_: None)
    for n in range(5):
        lives.remember(n, ledger(f"t{n}"))
    assert [each["tap"] for each in lives.ledgers()] == ["t2", "t3", "t4"]
