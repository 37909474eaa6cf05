# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import msgspec

from hostile_figures import empty, hostile, shop
from tapmirror.report import markdown


def test_what_matters_is_there() -> None:
    text = markdown(shop("broken", 3000))
    assert text.startswith("## shop: v2 against production: FAIL\n")
    assert re.search(r"^\| GET /products/\\{id\\} \| \d", text, re.MULTILINE)
    assert "**body.price.amount**: another value in" in text
    assert "`curl -i -H 'Host: shop.example'" in text
    assert "* taken for noise at GET " in text
    assert "| endpoint | requests | errors, production | errors, shadow | p50, production |" in text


def test_every_row_has_as_many_cells_as_its_head() -> None:
    rows = [line for line in markdown(hostile()).splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert counts == {6, 11}


def test_nothing_of_the_network_is_markup() -> None:
    text = markdown(hostile())
    outside = re.sub(r"`[^`]*`", "", text)
    assert "<script" not in outside
    assert "<img" not in outside
    assert "](javascript" not in outside
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_nobody_is_mentioned() -> None:
    assert "\\@team" in markdown(msgspec.structs.replace(shop("same", 50), tap="@team"))


def test_nothing_seen() -> None:
    assert "UNDECIDED" in markdown(empty())
