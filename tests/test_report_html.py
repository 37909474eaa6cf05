# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from hostile_figures import ATTACKS, empty, hostile, shop
from tapmirror.compare.figures import Estimate, Figures
from tapmirror.compare.words import clean
from tapmirror.report import html

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


@pytest.mark.parametrize(
    "figures",
    [(shop("broken", 3000),), (empty(),), (hostile(),), (shop("same", 100), empty(), hostile())],
    ids=["shop", "empty", "hostile", "several"],
)
def test_the_page_is_well_formed_and_has_nothing_in_it_that_acts_or_fetches(figures: tuple[Figures, ...]) -> None:
    page = Page(html(*figures))
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
    assert names[0] == "GET /"  # all of its responses differ
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


def test_what_is_worse_for_certain_is_red() -> None:
    figures = shop("same", 100)
    endpoint = figures.endpoints[0]
    for worse, name in (
        ({"error_diff": Estimate(0.02, 0.01, 0.03)}, "errors, was"),
        ({"p99_ratio": Estimate(2.0, 1.5, 3.0)}, "p99, "),
        ({"differing": 1}, "differ"),
    ):
        for changed, classes in ((worse, "num red"), ({}, "num")):
            text = html(msgspec.structs.replace(figures, endpoints=[msgspec.structs.replace(endpoint, **changed)]))
            assert re.search(rf'<span class="{classes}">[^<]*<small>{name}', text)


def test_notes_are_shown_where_nothing_was_lost() -> None:
    figures = msgspec.structs.replace(
        shop("same", 100), unpaired={}, failures={}, thinned=0, notes=["br is not undone"]
    )
    figures = msgspec.structs.replace(figures, endpoints=[])
    assert "What is not in it" in html(figures)
    assert "br is not undone" in html(figures)
    assert "What is not in it" not in html(msgspec.structs.replace(figures, notes=[]))


def test_where_nothing_was_compared_no_number_is_made_up() -> None:
    text = html(empty())
    assert "nothing was compared yet" in text
    assert "0 µs" not in text
    assert "How fast" not in text
    assert "100.0 %" not in text


def test_shadows_of_several_taps_are_told_apart() -> None:
    """They may well be the same."""
    one, other = (msgspec.structs.replace(empty(), tap=tap) for tap in ("web", "api"))
    assert "<h2>web: v2</h2>" in html(one, other)
    assert "<h2>api: v2</h2>" in html(one, other)
    assert "<h2>v2</h2>" in html(one, msgspec.structs.replace(one, shadow="v3"))


class Browser:
    """A real one, without a window."""

    def __init__(self, directory: Path) -> None:
        if CHROMIUM is None:
            pytest.skip("no chromium (scripts/setup --browser)")
        self.directory = directory
        self.net_log = directory / "net.json"

    def run(self, page: str, *options: str) -> str:
        """What it prints of a page."""
        path = self.directory / "page.html"
        path.write_text(page, encoding="utf-8")
        command = [
            str(CHROMIUM),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,900"),
            *(f"--user-data-dir={self.directory}/profile", f"--log-net-log={self.net_log}"),
            *(*options, f"file://{path}"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


def test_a_real_browser_shows_it_runs_nothing_and_asks_for_nothing(browser: Browser) -> None:
    page = html(hostile())
    assert "evil.example" in page
    dom = browser.run(page, "--dump-dom")
    assert "<title>UNDECIDED" in dom  # no attack has changed it
    assert "Endpoints, the worst first" in dom
    log = browser.net_log.read_text(encoding="utf-8", errors="replace")
    assert "page.html" in log
    assert "evil.example" not in log


def test_a_real_browser_draws_it(browser: Browser) -> None:
    shot = browser.directory / "shop.png"
    browser.run(html(shop("broken", 1000)), f"--screenshot={shot}")
    assert shot.stat().st_size > 20_000  # an empty page has 5 KB


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("names", [("shop",), ("empty",), ("hostile",), ("shop", "empty")], ids="-".join)
def test_nothing_is_wider_than_the_screen(browser: Browser, names: tuple[str, ...], width: int) -> None:
    """Of a phone too, with all that is folded away unfolded."""
    made = {"shop": lambda: shop("broken", 1000), "empty": empty, "hostile": hostile}
    found = [msgspec.structs.replace(made[name](), tap="t" * 63, shadow="s" * 300) for name in names]
    page = html(*found).replace("<details", "<details open")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # for our own script
    script = "parent.document.title = 'wide ' + document.documentElement.scrollWidth + ' of ' + innerWidth"
    page = escape(page.replace("</main>", f"</main><script>{script}</script>"), quote=True)
    # A window of its own would be at least 500 wide.
    dom = browser.run(f'<title></title><iframe width="{width}" frameborder="0" srcdoc="{page}"></iframe>', "--dump-dom")
    size = re.search(r"<title>wide (\d+) of (\d+)</title>", dom)
    assert size is not None
    assert int(size[1]) <= int(size[2]) == width
