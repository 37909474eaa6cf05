# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from differences import found, response, rules
from tapmirror.compare.diff import compare
from tapmirror.compare.elements import DEPTH, ELEMENTS, TIMES, at, document

NEWS, UPDATED = "<title>News</title>", "<updated>2026-11-29T10:00:00Z</updated>"
FEED = (
    f'<?xml version="1.0" encoding="utf-8"?><feed xmlns="http://www.w3.org/2005/Atom">{NEWS}{UPDATED}'
    '<entry id="1"><title>One &amp; two</title><link rel="self" href="/1"/><price cur="EUR">5</price></entry>'
    '<entry id="2"><title>Three</title><link rel="self" href="/2"/><price cur="EUR">6</price></entry></feed>'
)
SOAP = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
    '<Order xmlns="urn:shop"><id>17</id><item>anvil</item></Order></s:Body></s:Envelope>'
)


def xml(one: str, other: str, type_: str = "application/xml", **spec: object) -> list[str]:
    return found(response(one.encode(), type_=type_), response(other.encode(), type_=type_), **spec)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("><", ">\n    <"),
        ('rel="self" href="/1"', "href='/1'  rel='self'"),
        ('href="/1"/>', 'href="/1"></link>'),
        ("One &amp; two", "One &#38; two"),
        ("One &amp; two", "<![CDATA[One & two]]>"),
        ("One &amp; two", "\n  One &amp;\ttwo "),
        ("<title>News", "<!-- new --><title>Ne<!-- s -->ws"),
        ('<?xml version="1.0" encoding="utf-8"?>', '<?xml-stylesheet href="/a.css"?>'),
    ],
)
def test_how_it_is_written_says_nothing(old: str, new: str) -> None:
    assert old in FEED
    assert xml(FEED, FEED.replace(old, new)) == []


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ("News", "Olds", ["value body.feed.title"]),
        ("Three", "Four", ["value body.feed.entry.title"]),
        ('href="/2"', 'href="/3"', ["value body.feed.entry.link.@href"]),
        (' rel="self" href="/2"', ' href="/2"', ["missing body.feed.entry.link.@rel"]),
        ('rel="self" href="/2"', 'rel="self" type="x" href="/2"', ["extra body.feed.entry.link.@type"]),
        ('cur="EUR">6', 'cur="EUR">7', ["value body.feed.entry.price.#text"]),
        ('cur="EUR">6', 'cur="USD">6', ["value body.feed.entry.price.@cur"]),
        ("<title>Three</title>", "", ["missing body.feed.entry.title"]),
        ("<title>Three</title>", "<title/>", ["value body.feed.entry.title"]),
        ("<title>Three</title>", "<title>Three</title><title/>", ["length body.feed.entry.title"]),
        ("<title>Three</title>", '<title lang="en">Three</title>', ["extra body.feed.entry.title.@lang"]),
        (
            "<title>Three</title>",
            "<title><b/></title>",
            ["missing body.feed.entry.title.#text", "extra body.feed.entry.title.b"],
        ),
        ("</feed>", "<entry/></feed>", ["length body.feed.entry"]),
        ("</feed>", "<x/></feed>", ["extra body.feed.x"]),
        ("2005/Atom", "2006/Atom", ["value body.feed.@xmlns"]),
        (NEWS + UPDATED, UPDATED + NEWS, ["order body.feed"]),
    ],
)
def test_what_differs_is_named_by_its_path(old: str, new: str, fields: list[str]) -> None:
    assert old in FEED
    assert xml(FEED, FEED.replace(old, new)) == fields


def test_elements_in_another_order_are_held_against_those_they_belong_to() -> None:
    begins, ends = FEED.index('<entry id="1"'), FEED.index("</feed>")
    middle = FEED.index('<entry id="2"')
    turned = FEED[:begins] + FEED[middle:ends] + FEED[begins:middle] + FEED[ends:]
    assert xml(FEED, turned) == ["order body.feed.entry"]
    assert xml(FEED, turned.replace("Three", "Four")) == ["order body.feed.entry", "value body.feed.entry.title"]


def test_a_prefix_is_no_name() -> None:
    other = (
        '<env:Envelope xmlns:env="http://schemas.xmlsoap.org/soap/envelope/" xmlns:o="urn:shop"><env:Body>'
        "<o:Order><o:id>17</o:id><o:item>anvil</o:item></o:Order></env:Body></env:Envelope>"
    )
    assert xml(SOAP, other, "application/soap+xml") == []
    assert xml(SOAP, SOAP.replace("anvil", "magnet")) == ["value body.Envelope.Body.Order.item"]
    assert xml(SOAP, SOAP.replace("urn:shop", "urn:mall")) == ["value body.Envelope.Body.Order.@xmlns"]


XLINK = "{http://www.w3.org/1999/xlink}"


@pytest.mark.parametrize(
    ("one", "other", "fields"),
    [
        ('href="#1" l:href="#2"', 'href="#9" l:href="#2"', ["value body.use.@href"]),
        ('href="#1" l:href="#2"', 'href="#1" l:href="#9"', [f"value body.use.@{XLINK}href"]),
        ('href="#1" l:href="#2"', 'l:href="#2" href="#1"', []),
        ('href="#1" l:href="#2"', 'href="#1"', [f"missing body.use.@{XLINK}href"]),
        ('l:t="1" m:t="2" t="3"', 't="3" m:t="2" l:t="1"', []),
        ('l:t="1" m:t="2"', 'm:t="2" l:t="1"', []),
        ('l:t="1" m:t="2"', 'l:t="1" m:t="3"', ["value body.use.@{urn:m}t"]),
        ('xmlns="urn:a" l:xmlns="1"', 'l:xmlns="2" xmlns="urn:a"', [f"value body.use.@{XLINK}xmlns"]),
        ('l:href="#1"', 'm:href="#1"', []),
    ],
)
def test_attributes_of_one_name_in_different_namespaces(one: str, other: str, fields: list[str]) -> None:
    use = '<use xmlns:l="http://www.w3.org/1999/xlink" xmlns:m="urn:m" %s/>'
    assert xml(use % one, use % other, "image/svg+xml") == fields
    assert xml(use % one, use % other, ignore_paths=(f"use.@{XLINK}*", "use.@href", "use.@{urn:m}t")) == []


def test_paths_are_ignored_as_those_of_json() -> None:
    other = FEED.replace("10:00:00", "11:00:00").replace('href="/1"', 'href="/7"')
    assert xml(FEED, other) == ["value body.feed.updated", "value body.feed.entry.link.@href"]
    assert xml(FEED, other, ignore_paths=("feed.updated",)) == ["value body.feed.entry.link.@href"]
    assert xml(FEED, other, ignore_paths=("**.updated", "feed.entry.link")) == []
    assert xml(FEED, other, time_tolerance=7200.0) == ["value body.feed.entry.link.@href"]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "1"><!ENTITY y "&x;&x;">]><a>&y;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        "<a>&x;</a>",
        "<a>" * (DEPTH + 1) + "</a>" * (DEPTH + 1),
        "<a>" + "<b/>" * ELEMENTS + "</a>",
        "<a " + " ".join(f'b{n}=""' for n in range(ELEMENTS)) + "/>",
        "<a><b></a>",
        "<a:b/>",
        "<a/><b/>",
        "<a>\x00</a>",
        "no xml",
        "",
    ],
)
def test_what_is_not_read_is_compared_as_text(text: str) -> None:
    assert document(text.encode(), b"text/xml") is None
    assert xml(f"{text}\n<!-- 1 -->", f"{text}\n<!-- two -->") == ["value body.lines"]


LATIN = '<?xml version="1.0" encoding="%s"?><a><t>%s</t><n>%s</n></a>'


@pytest.mark.parametrize(
    ("type_", "declared", "written"),
    [
        ("text/xml", "ISO-8859-1", "iso-8859-1"),
        ("text/xml", "windows-1252", "windows-1252"),
        ("text/xml", "Shift_JIS", "shift_jis"),
        ("text/xml", "utf-16", "utf-16"),
        ("text/xml", "utf-16", "utf-8"),
        ("text/xml", "nonsense", "utf-8"),
        ("text/xml", "ISO-8859-1", "utf-8-sig"),
        ("text/xml; charset=utf-8", "ISO-8859-1", "utf-8"),
        ("text/xml; charset=ISO-8859-1", "utf-8", "iso-8859-1"),
    ],
)
def test_the_encoding_that_is_declared(type_: str, declared: str, written: str) -> None:
    """What Content-Type says goes before it (RFC 7303, 3.2)."""
    name, its_name = ("\u30a2", "\u30a4") if written == "shift_jis" else ("\xe9", "\xe8")
    one = response((LATIN % (declared, 1, name)).encode(written), type_=type_)
    other = response((LATIN % (declared, 2, its_name)).encode(written), type_=type_)
    assert found(one, other) == ["value body.a.t", "value body.a.n"]
    assert found(one, other, ignore_paths=("a.t",)) == ["value body.a.n"]
    tree = document(one.body, type_.encode())
    assert tree is not None
    assert [*at(tree.root, "body.a.n")] == [name]


@pytest.mark.parametrize(
    ("type_", "declared"),
    [
        ("text/xml", "utf-8"),
        ("text/xml; charset=utf-8", "ISO-8859-1"),
        *(
            ("text/xml", name)
            for name in (
                "nonsense",
                "iso-8859-99",
                "punycode",
                "idna",
                "utf-7",
                "unicode_escape",
                "hex",
                "zlib",
                "rot13",
            )
        ),
    ],
)
def test_what_is_no_text_in_its_encoding_is_compared_by_its_tags(type_: str, declared: str) -> None:
    """What is replaced would be the same on both sides."""
    one, other = (
        response((LATIN % (declared, *each)).encode("latin-1"), type_=type_) for each in ((1, "\xe9"), (2, "\xe8"))
    )
    assert document(one.body, type_.encode()) is None
    fields = found(one, other, ignore_paths=("a.t",))
    assert len(fields) == 1
    assert fields[0].startswith("value body.lines")


def test_what_is_as_deep_and_as_much_as_is_read() -> None:
    assert document(("<a>" * DEPTH + "</a>" * DEPTH).encode(), b"text/xml") is not None
    assert document(("<a>" + "<b/>" * (ELEMENTS - 1) + "</a>").encode(), b"text/xml") is not None
    deep = "<a>" * DEPTH + "%d" + "</a>" * DEPTH
    assert xml(deep % 1, deep % 2) == ["value body" + (".a" * DEPTH)]


@pytest.mark.parametrize(
    "text",
    [
        "<a>" + "".join(f"<b{n}/>" for n in range(ELEMENTS - 1)) + "</a>",
        "<a>" + "x&#10;" * 40_000 + "</a>",
        "<a>" + "x<!---->" * 30_000 + "</a>",
        "<a>" * 40_000,
        "<a b='" + "&lt;" * 60_000 + "'/>",
    ],
)
def test_hostile_xml_takes_no_time(text: str) -> None:
    began = time.process_time()
    xml(text, text.replace("<a", "<a c='1'", 1))
    assert time.process_time() - began < 5


def test_it_counts_for_the_time_that_it_takes() -> None:
    one, other = (response(FEED.replace("Three", title).encode(), type_="text/xml") for title in ("Three", "Seven"))
    text, its_text = (response(each.body, type_="text/plain") for each in (one, other))
    assert compare(one, other, rules()).looked == TIMES * compare(text, its_text, rules()).looked == 6 * len(FEED)


@pytest.mark.parametrize(
    "type_", ["application/xhtml+xml", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"]
)
def test_what_is_not_compared_as_xml_counts_as_what_it_is(type_: str) -> None:
    one, other = (response(body, type_=type_) for body in (b"<a>1</a>", b"<a>2</a>"))
    assert compare(one, other, rules()).looked == 16


def test_the_values_at_a_path() -> None:
    tree = document(FEED.encode(), b"text/xml")
    assert tree is not None
    root = tree.root
    assert [*at(root, "body.feed.entry.link.@href")] == ["/1", "/2"]
    assert [*at(root, "body.feed.title")] == ["News"]
    assert [*at(root, "body.feed.nothing")] == []
    assert [*at(root, "body.feed.title.#text")] == []
