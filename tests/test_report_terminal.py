# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import msgspec

from hostile_figures import ATTACKS, empty, hostile, shop
from tapmirror.report.terminal import terminal


def test_what_matters_is_there() -> None:
    text = terminal(shop("broken", 3000))
    assert "FAIL" in text
    assert "body.price.amount" in text
    assert "taken for noise" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    assert "GET /users/{id}/orders   status" in text


def test_on_a_usual_terminal_no_name_and_no_number_is_cut() -> None:
    text = terminal(shop("broken", 3000), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "GET /products/{id}  body.price.amount: another value in" in text
    assert "GET /users/{id}/orders" in text
    for word in ("errors", "p99", "differ", "FAIL"):
        assert word in text


def test_on_a_narrow_one_figures_are_told_in_lines() -> None:
    text = terminal(shop("broken", 3000), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert "…" not in text and "─" not in text
    lines = [line.strip() for line in text.splitlines()]
    assert "GET /users/{id}/orders" in lines  # in one piece
    said = " ".join(text.split())
    assert re.search(
        r" GET /users/\{id\}/orders [\d,]+ requests, errors [\d.]+ → [\d.]+ %, p99 [\d.]+ → [\d.]+ ms \([+-]\d+ %\), "
        r"[\d.]+ % differ ",
        said,
    )
    assert re.search(r" difference rate: [\d.]+ % \(interval [\d.]+ % to [\d.]+ %, at most 0.50 %\): fail ", said)


def test_colour_only_if_asked_for() -> None:
    assert "\x1b[" in terminal(empty(), colour=True)


def test_what_a_file_says_does_not_control_the_terminal() -> None:
    for attack in ATTACKS:
        figures = msgspec.structs.replace(hostile(), tap=attack, shadow=attack, level=attack)
        for width in (40, 80, 400):
            assert not {"\x1b", "\x07", "\u202e"}.intersection(terminal(figures, width=width))


def test_nothing_of_the_network_controls_the_terminal_or_is_markup() -> None:
    for width in (69, 109, 400):
        text = terminal(hostile(), width=width)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]markup[/bold]" in text
