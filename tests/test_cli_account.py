# SPDX-License-Identifier: Apache-2.0
"""A ledger for people: whole, whatever the terminal, and no number broken."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ledgers import EXPECTED, rows, snapshot
from tapmirror.cli.account import final, print_ledger


def shown(ledger: dict[str, Any], width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(final(ledger))
    assert max(map(len, out.getvalue().splitlines())) <= width
    return out.getvalue()


def test_the_ledger_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(snapshot())
    output, errors = capsys.readouterr()
    assert errors == ""
    found = rows(output)
    assert {name: found.get(name) for name in EXPECTED} == EXPECTED
    assert output.startswith("Ledger\n") and output.endswith(
        "┘\nrequests not counted: those in 200 lost segments\nshadow: 2xx 2,300\n"
    )
    assert shown({**snapshot(), "tap": "web"}).startswith("Ledger of web\n")


def test_time_without_an_interface_is_told() -> None:
    line = "nothing was captured for 4.3 s, because there was no interface to capture"
    assert line in shown({**snapshot(), "away_s": 4.26}).splitlines()
    line = "eth1 was not captured for 4.3 s: it was missing, or could not be"
    assert line in shown({**snapshot(), "missing_s": {"eth1": 4.26}}).splitlines()
    assert "nothing was captured" not in shown(snapshot())


def test_no_number_and_no_word_is_broken_on_a_narrow_terminal() -> None:
    large = snapshot(scale=1_234_567)
    text = shown(large, 40)
    assert "│" not in text and "│" in shown(large, 80)
    said = " ".join(text.split())
    for fate, numbers in rows(shown(large, 80)).items():
        if fate:
            one, two, three = numbers
            assert f"{fate}: {one} segments, {two} bytes, {three} requests" in said
    assert "dropped: shadow_down: 123,456,700 segments, 123,456,700 bytes, 123,456,700 requests" in said


def test_names_of_shadows_that_begin_alike_are_told_apart() -> None:
    (one,) = snapshot()["shadows"].values()
    two = {**snapshot(), "shadows": {"staging-of-shop.test:8080": one, "staging-of-shop.test:8081": one}}
    for width in (80, 30):
        text = "".join(shown(two, width).split())
        assert "…" not in text and "8080" in text and "8081" in text
        assert "shadowstaging-of-shop.test:8081:2xx2,300" in text
    for width in (80, 90, 200):  # names fold, numbers do not
        text = shown(two, width)
        assert "│ mirrored             │      400 │" in text and text.count(" 1,400 │") == text.count(" 2,400 │") == 2
    assert "1,400 bytes of staging-of-shop.test:8080" in " ".join(shown(two, 60).split())


def test_what_a_hook_costs() -> None:
    ledger = snapshot()
    hooked = {**ledger, "events": {**ledger["events"], "hook_calls": 2000, "hook_ns": 5_000_000}}
    assert shown(hooked).endswith("\nhook: 2,000 calls, 2.5 us each\n")
