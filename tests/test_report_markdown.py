# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import msgspec
import pytest
from markdown_it import MarkdownIt

from hostile_figures import empty, hostile, shop
from tapmirror.compare.noise import Nature
from tapmirror.compare.words import clean
from tapmirror.report import markdown
from tapmirror.report.words import EARLY


def test_what_matters_is_there() -> None:
    text = markdown(shop("broken", 3000))
    assert text.startswith("## shop: v2 against production: FAIL\n")
    assert re.search(r"^\| GET /products/\\{id\\} \| \d", text, re.MULTILINE)
    assert "**body.price.amount**: another value in" in text
    assert "`curl -i -H 'Host: shop.example'" in text
    assert "* taken for noise at GET " in text
    assert "| endpoint | requests | errors, production | errors, shadow | p50, production |" in text


def test_what_cannot_be_told_yet_is_said_to_be_so_and_nothing_else() -> None:
    figures = shop("broken", 3000)
    endpoint = next(
        each for each in figures.endpoints if any(field.nature is Nature.DIFFERENT for field in each.fields)
    )
    field = next(field for field in endpoint.fields if field.nature is Nature.DIFFERENT)
    for what, count in ((Nature.DIFFERENT, 0), (Nature.WAITING, 1), (Nature.NOISE, 0)):
        shown = msgspec.structs.replace(endpoint, fields=[msgspec.structs.replace(field, nature=what)])
        text = markdown(msgspec.structs.replace(figures, endpoints=[shown]))
        assert (text.count(f"({EARLY})"), "### " in text) == (count, what is not Nature.NOISE)


def test_every_row_has_as_many_cells_as_its_head() -> None:
    rows = [line for line in markdown(hostile()).splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert counts == {6, 11}


def test_nothing_of_the_network_is_markup() -> None:
    text = markdown(hostile())
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert "<script" not in outside
    assert "<img" not in outside
    assert "](javascript" not in outside
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("text", ["`$(id)` | `id`", "a``b`c", "`", " a ", "x"])
def test_a_line_for_a_shell_is_shown_as_it_is(text: str) -> None:
    """A quote in place of a backquote ends a word, and what follows are commands of whoever sent the request."""
    figures = shop("broken", 3000)
    endpoint = next(each for each in figures.endpoints if any(field.samples for field in each.fields))
    field = next(field for field in endpoint.fields if field.samples)
    sample = msgspec.structs.replace(field.samples[0], curl=f"curl -H 'X: {text}' http://a", one=text)
    field = msgspec.structs.replace(field, samples=[sample], nature=Nature.DIFFERENT)
    shown = msgspec.structs.replace(endpoint, fields=[field])
    tokens = MarkdownIt().parse(markdown(msgspec.structs.replace(figures, endpoints=[shown])))
    codes = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    assert codes == [text, clean(sample.other), sample.curl]


def test_nobody_is_mentioned() -> None:
    assert "\\@team" in markdown(msgspec.structs.replace(shop("same", 50), tap="@team"))


def test_nothing_seen() -> None:
    assert "UNDECIDED" in markdown(empty())
