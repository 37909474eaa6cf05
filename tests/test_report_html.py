# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from hostile_figures import ATTACKS, empty, hostile, shop
from tapmirror.compare import Figures
from tapmirror.report import html
from tapmirror.report.words import clean

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "br", "img", "input"}


class Page(HTMLParser):
    """Which elements and attributes there are, and whether each that begins ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("figures", [shop("broken", 3000), empty(), hostile()], ids=["shop", "empty", "hostile"])
def test_the_page_is_well_formed_and_has_nothing_in_it_that_acts_or_fetches(figures: Figures) -> None:
    page = Page(html(figures))
    assert page.open == []
    assert not page.elements & {"script", "img", "a", "link", "iframe", "form", "input", "object", "base"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src", "style", "action", "xlink:href")
        assert "javascript:" not in (value or "")
    assert "Content-Security-Policy" in {value for _, value in page.attributes}


def test_what_the_network_said_is_shown_as_text() -> None:
    text = html(hostile())
    page = Page(text)
    for attack in ATTACKS:
        assert clean(attack) in page.text
    assert "\u202e" not in text, "what stands beside a name is read as it is written"


def test_the_verdict_stands_at_the_top_and_the_worst_endpoint_first() -> None:
    text = html(shop("broken", 3000))
    assert text.index("FAIL") < text.index("How fast") < text.index("Endpoints")
    names = re.findall(r'class="name">([^<]*)<', text)
    assert names[0] == "GET /"  # all of its answers differ
    assert len(names) == 6
    assert "body.price.amount" in text
    assert "http://v2.test:8080/products/" in text


def test_status_codes_are_there_in_numbers_too() -> None:
    """A phone has no pointer to hover with."""
    text = html(shop("broken", 3000))
    assert re.search(r'<tr><td>500</td><td class="n">0 .*?</td><td class="n">[1-9]', text)


def test_of_many_endpoints_those_without_a_concern_are_folded_away() -> None:
    figures = shop("broken", 1000)
    quiet = next(each for each in figures.endpoints if each.name == "GET /search")
    many = [msgspec.structs.replace(quiet, name=f"GET /{n}") for n in range(100)]
    text = html(msgspec.structs.replace(figures, endpoints=[*figures.endpoints, *many]))
    assert "<summary>81 more</summary>" in text
    assert text.index("GET /18<") < text.index("81 more") < text.index("GET /19<")
    assert text.count("<details open>") == 1


def test_where_nothing_was_compared_no_number_is_made_up() -> None:
    text = html(empty())
    assert "nothing was compared yet" in text
    assert "0 µs" not in text
    assert "How fast" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (scripts/setup --browser)")
def test_a_real_browser_shows_it_and_runs_nothing(tmp_path: Path) -> None:
    command = [
        str(CHROMIUM),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,900"),
        f"--user-data-dir={tmp_path}/profile",
    ]
    page = tmp_path / "hostile.html"
    page.write_text(html(hostile()), encoding="utf-8")
    dom = subprocess.run([*command, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=120).stdout
    assert "<title>UNDECIDED" in dom  # no attack has changed it
    assert "Endpoints, the worst first" in dom
    page.write_text(html(shop("broken", 1000)), encoding="utf-8")
    shot = tmp_path / "shop.png"
    subprocess.run([*command, f"--screenshot={shot}", f"file://{page}"], capture_output=True, timeout=120)
    assert shot.stat().st_size > 20_000  # an empty page has 5 KB
