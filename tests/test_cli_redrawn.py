# SPDX-License-Identifier: Apache-2.0
"""The table that is redrawn, with a ledger.  What it has in common with lines, and a terminal: `test_cli_live`."""

from __future__ import annotations

from typing import Any

import pytest

from ledgers import EXPECTED, rows, snapshot
from tapmirror.cli.live import heading
from tapmirror.cli.redrawn import LiveView
from tapmirror.spec import TapSpec, parse_shadow


def spec(**change: Any) -> TapSpec:
    shadow = parse_shadow(change.pop("shadow", "staging:8080"))
    return TapSpec(**{"iface": "eth0", "ports": (80,), "shadows": (shadow,), **change})


def test_the_table_shows_the_ledger_and_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView([spec()]) as view:
        view.show([snapshot()])
    output, errors = capsys.readouterr()
    assert output == ""
    found = rows(errors)
    assert {name: found.get(name) for name in EXPECTED} == EXPECTED
    for word in (heading(spec()), "flows 12,345", "40 MB", "capture ebpf", "Ctrl-C stops"):
        assert word in " ".join(errors.split())


@pytest.mark.parametrize(
    "change",
    [
        {"shadow": "[fd77:2::2]:80"},
        {"shadow": "[fe80::1]:80"},
        {"shadow": "[2001:db8:0:a:b::1]:80"},
        {"iface": "a[b]c"},
        {"iface": "br-[red]"},
    ],
    ids=str,
)
def test_an_address_or_a_name_is_shown_as_it_is(change: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    odd = spec(**change)
    with LiveView([odd]) as view:
        view.show([snapshot()])
    assert heading(odd) in " ".join(capsys.readouterr().err.split())
