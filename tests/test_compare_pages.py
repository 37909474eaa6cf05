# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from differences import found, response
from tapmirror.compare.pages import page

HEAD = '<!doctype html><html><head><title>Shop</title><meta name="description" content="all of it">'
PAGE = (
    HEAD
    + '<meta name="robots" content="index"><link rel="stylesheet" href="/a.css"><script src="/a.js"></script></head>'
    + '<body class="wide dark"><a href="/cart">Cart</a><a href="/help">Help &amp; more</a>'
    + '<form action="/buy" method="post"><input type="hidden" name="csrf" value="aaaaaaaaaaaaaaaaaaaaaaaa">'
    + '<input name="count" value="1" required></form><img src="/1.png" alt="one"><script>let total = "ten";</script>'
    + "<style>p { color: red }</style></body></html>"
)


def pages(one: str, other: str, **spec: object) -> list[str]:
    return found(response(one.encode(), type_="text/html"), response(other.encode(), type_="text/html"), **spec)


def test_html_is_compared_by_its_text() -> None:
    one = "<html><!-- 1 --><style>p {}</style><p>Price:&nbsp;<b>5</b></p>\n<script>x = 1</script><p>on</p>"
    other = "<html>\n<style>p {}</style><p>Price: <b>5</b></p><script>x = 1</script>\n\n<p>on</p><!-- no end"
    assert page(one).lines == ["Price: 5", "on"]
    assert pages(one, other) == []
    assert pages(one, other.replace("on<", "off<")) == ["value body.lines"]


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ('href="/cart"', 'href="/basket"', ["value body.a.href"]),
        ('href="/cart"', "", ["missing body.a.href"]),
        ('<a href="/cart"', '<a rel="x" href="/cart"', ["extra body.a.rel"]),
        ('action="/buy"', 'action="/sell"', ["value body.form.action"]),
        ('method="post"', 'method="get"', ["value body.form.method"]),
        ("all of it", "a part of it", ["value body.meta.description.content"]),
        ('content="index"', 'content="noindex"', ["value body.meta.robots.content"]),
        ("<title>Shop", "<title>Stop", ["value body.lines"]),
        ("/a.css", "/b.css", ["value body.link.stylesheet.href"]),
        ("/a.js", "/b.js", ["value body.script.src"]),
        ("/1.png", "/one.png", ["value body.img.src"]),
        ('alt="one"', 'alt="two"', ["value body.img.alt"]),
        (" required", "", ["missing body.input.count.required"]),
        ('name="count"', 'name="number"', ["value body.input.count.name"]),
        ("wide dark", "wide", ["value body.body.class"]),
        ('"ten"', '"nine"', ["value body.script"]),
        ("color: red", "color: blue", ["value body.style"]),
        ("<img", "<hr><img", ["extra body.hr"]),
        ('<img src="/1.png" alt="one">', "", ["missing body.img"]),
        ('<a href="/cart">Cart</a>', "", ["value body.lines", "missing body.a"]),
    ],
)
def test_what_is_no_text_is_compared(old: str, new: str, fields: list[str]) -> None:
    assert old in PAGE
    assert pages(PAGE, PAGE.replace(old, new, 1)) == fields


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('action="/buy" method="post"', 'method="post" action="/buy"'),
        ('href="/cart"', "href='/cart'"),
        ('href="/cart"', "href=/cart"),
        ('<a href="/cart"', '<A  HREF = "/cart"'),
        ("wide dark", "dark\n wide"),
        (" required", ' required=""'),
        ("Help &amp; more", "Help &#38; more"),
        ("all of it", "all&#x20;of it"),
        ("<img", "<!-- new --><img"),
        ('alt="one">', 'alt="one"/>'),
        ("</body>", "\n\n</body>"),
        ("let total", "\n   let total"),
    ],
)
def test_how_it_is_written_says_nothing(old: str, new: str) -> None:
    assert old in PAGE
    assert pages(PAGE, PAGE.replace(old, new, 1)) == []


def test_tokens_are_fields_of_their_own() -> None:
    """So they are learned as noise and hide no other difference."""
    token = "a" * 24
    noise = pages(PAGE, PAGE.replace(token, "b4" * 12))
    assert len(noise) == 1
    assert noise[0].startswith("value body.input.csrf.value[")
    assert {*pages(PAGE, PAGE.replace(token, "b4" * 12).replace("/cart", "/basket"))} - {*noise} == {
        "value body.a.href"
    }
    assert pages(PAGE, PAGE.replace(token, "b4" * 12), ignore_paths=("input.csrf.value",)) == []
    shoes, boots = (f'<a href="/products/categories/{each}">x</a>' for each in ("shoes", "boots"))
    assert pages(shoes, boots) == ["value body.a.href"]
    item, other, elsewhere = (f'<a href="/{each}">x</a>' for each in ("item/17", "item/18", "card/17"))
    assert pages(item, other) != pages(item, elsewhere) == ["value body.a.href"]


def test_what_stands_elsewhere_does_not_move_all_the_rest() -> None:
    rows = [f'<li><a href="/item/{n}" class="link">Item {n}</a></li>' for n in range(50)]
    more = [*rows[:10], "<li><b>new</b></li>", *rows[10:]]
    assert pages("".join(rows), "".join(more)) == ["extra body.lines", "extra body.li", "extra body.b"]
    more[30] = more[30].replace('href="/item', 'href="/article')
    assert {"value body.a.href"} == {*pages("".join(rows), "".join(more))} - {
        *("extra body.lines", "extra body.li", "extra body.b")
    }


def test_a_difference_is_told_once() -> None:
    links = "".join(f'<a href="/old/{n}" title="x">x</a>' for n in range(3000))
    assert pages(links, links.replace("/old", "/new")) == ["value body.a.href", "value body.elements"]
    assert pages(links, links.replace("/old", "/new") + "<b>") == ["value body.a.href", "value body.elements"]


@pytest.mark.parametrize(
    "piece",
    [
        *("<", "<a ", "<a x=", '<a x="', "<!--", "<script>", "<script", "&", "<a " + "x " * 9, "<p " + " " * 99),
        f'<a href="{"a" * 380}">',
    ],
)
def test_hostile_pages_take_linear_time(piece: str) -> None:
    times = []
    for size in (20_000, 80_000):
        one, other = (piece * (size // len(piece)) + end for end in ("x>", "y>"))
        begun = time.process_time()
        pages(one, other)
        times.append(time.process_time() - begun)
    assert times[1] < 0.5 + 8 * times[0]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("<p>a<script src=x", ["a"]),
        ("<p>a<script>b", ["a"]),
        ("<p>a<script>b</script c", ["a"]),
        ("<p>a<style>b</style>c", ["ac"]),
        ("a<!-- <script> -->b", ["ab"]),
        ("a &lt;b&gt; &copy; &amp;lt; &amp", ["a <b> © &lt; &"]),
    ],
)
def test_what_has_no_end(text: str, lines: list[str]) -> None:
    assert page(text).lines == lines


def test_a_reference_to_no_character_is_text() -> None:
    """Of so many digits that Python does not read the number."""
    long = "&#" + "9" * 5000 + ";"
    assert pages(f"<p>a{long}", f"<p>b{long}") == ["value body.lines"]
    assert pages(f'<a href="/a{long}">', f'<a href="/b{long}">') == ["value body.a.href"]
