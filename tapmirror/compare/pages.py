# SPDX-License-Identifier: Apache-2.0
"""What two pages of HTML differ in: their text, the attributes of their elements, their scripts and styles.

The text is compared by lines: each block is a line, with white space as one space.  Elements are compared in their
order; if one side has other elements, those on one side only are paired by their kind.  An attribute is a field with
its element and its name, `body.a.href`.  Elements that a page has for different purposes also have what distinguishes
them: `body.meta.description.content`, `body.input.csrf.value`.

Ignored are the order of attributes and of the names of a class, quotes, the case of names, character references, and
comments.  Values that differ only in digits and long tokens are a separate field, as lines are.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from functools import lru_cache
from typing import Final

import msgspec

from tapmirror.compare.findings import Change, Findings
from tapmirror.compare.texts import IN_REFERENCES, LINES, Lines, place
from tapmirror.compare.words import shortened

_TAG: Final = re.compile(r"(<[^<>]*>)")
LONGEST: Final = len("</section") + 1
"""Most characters of a tag that are needed to see whether it begins or ends a block."""
_BLOCK: Final = re.compile(
    r"</?(?:p|div|br|li|ul|ol|tr|td|th|table|h[1-6]|section|article|title|body|head|option|hr)\b", re.IGNORECASE
)
_NAME: Final = re.compile(r"<([A-Za-z][^\s/>]*)")
_ATTRIBUTE: Final = re.compile(r"([^\s\"'>/=]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s\"'>]++)))?+")
_TELLING: Final = ("name", "property", "http-equiv", "itemprop", "rel")
"""Attributes, the first of which distinguishes an element of `_TOLD` from others (HTML, 4.2 and 4.10)."""
_TOLD: Final = frozenset({"meta", "link", "input", "select", "textarea", "button", "form", "iframe"})
_REFERENCES: Final = (
    *(("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&#x27;", "'"), ("&nbsp;", "\xa0")),
    ("&amp;", "&"),  # the last: "&amp;lt;" is "&lt;"
)
_OTHER: Final = re.compile(r"&(?!lt;|gt;|quot;|#39;|#x27;|nbsp;|amp;)[#A-Za-z]")
_HIDDEN: Final = re.compile(r"<!--|<script\b|<style\b")
_ENDS: Final = {"<!--": "-->", "<scr": "</script", "<sty": "</style"}


class Page(msgspec.Struct, gc=False):
    """A page, taken apart."""

    lines: list[str]
    """The page's text, a line for each block; none is empty."""
    tags: list[str]
    """The tags, as they are written."""
    scripts: list[str]
    """Lines within scripts."""
    styles: list[str]


def differ(findings: Findings, one: str, other: str) -> None:
    """Find what two pages differ in."""
    mine, its = page(one), page(other)
    Lines(findings, "body.lines").differ(mine.lines, its.lines)
    if mine.tags != its.tags:
        _Elements(findings).differ(mine.tags, its.tags)
    for path, first, second in (("script", mine.scripts, its.scripts), ("style", mine.styles, its.styles)):
        if first != second:
            Lines(findings, f"body.{path}").differ(first, second)


def page(text: str) -> Page:
    """Take a page apart."""
    found = Page([], [], [], [])
    parts = _TAG.split(_shown(text, found))
    found.tags = parts[1::2]
    parts[1::2] = [_break(tag[:LONGEST]) for tag in found.tags]
    for line in _unescaped("".join(parts)).split("\n"):
        line = " ".join(line.split())
        if line:
            found.lines.append(line)
    return found


@lru_cache(1024)
def _break(tag: str) -> str:
    """What replaces a tag that begins like this in the text: a line break, or nothing."""
    return "\n" if _BLOCK.match(tag) else ""


def _unescaped(text: str) -> str:
    """The text with character references resolved: the most frequent ones directly, which takes a tenth of the time."""
    if "&" not in text:
        return text
    if _OTHER.search(text) is not None:
        try:
            return html.unescape(text)
        except ValueError:  # a number of more digits than Python reads (sys.set_int_max_str_digits)
            return text
    for name, character in _REFERENCES:
        text = text.replace(name, character)
    return text


def _shown(text: str, found: Page) -> str:
    """The text without comments, scripts and styles; the content of the latter goes to `found`.

    One that is not closed reaches to the end.
    """
    kept: list[str] = []
    lower = text.lower() if text.isascii() else text
    pos = 0
    for hidden in _HIDDEN.finditer(lower):
        start = hidden.start()
        if start < pos:
            continue
        kind = hidden[0][:4]
        comment = kind == "<!--"
        begins = hidden.end() if comment else lower.find(">", hidden.end()) + 1
        if not begins:
            return "".join([*kept, text[pos:start]])
        kept.append(text[pos : start if comment else begins])
        at = lower.find(_ENDS[kind], begins)
        pos = lower.find(">", at) + 1 if at >= 0 else 0
        if not comment:
            lines = text[begins : at if at >= 0 else len(text)].splitlines()
            (found.scripts if kind == "<scr" else found.styles).extend(filter(None, map(str.strip, lines)))
        if not pos:
            return "".join(kept)
    kept.append(text[pos:])
    return "".join(kept)


class _Elements:
    """The comparison of the elements of two pages."""

    __slots__ = ("findings", "seen")

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.seen: set[str] = set()
        """Paths that differ.  Each is reported once; otherwise a list of a thousand links would take all the room."""

    def differ(self, one: list[str], other: list[str]) -> None:
        """Compare two lists of tags that are not equal."""
        one, other = _beginning(one), _beginning(other)
        if len(one) == len(other):
            pairs = [(mine, its) for mine, its in zip(one, other, strict=True) if mine != its]
            elements = [(_element(mine), _element(its)) for mine, its in pairs[:LINES]]
            if all(mine[0] == its[0] for mine, its in elements):
                for (_, mine_), (_, its_) in elements:
                    self.attributes(mine_, its_)
                if len(pairs) > LINES:
                    self.add(
                        Change.VALUE, "body.elements", *(_written([*each]) for each in zip(*pairs[LINES:], strict=True))
                    )
                return
        self.others(Counter(one), Counter(other))

    def others(self, one: Counter[str], other: Counter[str]) -> None:
        """Compare elements that are on one side only, by their kind."""
        left, right = [*(one - other).elements()], [*(other - one).elements()]
        gone, new = _by_name(left[:LINES]), _by_name(right[:LINES])
        for name in dict.fromkeys((*gone, *new)):
            mine, its = gone.get(name, []), new.get(name, [])
            for pair in zip(mine, its, strict=False):
                self.attributes(*pair)
            if len(mine) > len(its):
                self.add(Change.MISSING, name, _written(mine[len(its) :]), None)
            elif len(its) > len(mine):
                self.add(Change.EXTRA, name, None, _written(its[len(mine) :]))
        if max(len(left), len(right)) > LINES:
            self.add(Change.VALUE, "body.elements", _written(left[LINES:]), _written(right[LINES:]))

    def attributes(self, one: str, other: str) -> None:
        """Compare two tags of elements that belong to each other."""
        mine, its = _attributes(one), _attributes(other)
        name = _path(mine, one)
        for key in dict.fromkeys((*mine, *its)):
            first, second = mine.get(key), its.get(key)
            if first == second:
                continue
            path = f"{name}.{shortened(key)}"
            if first is not None and second is not None:
                first, second = _value(key, first), _value(key, second)
                if first != second and not self.findings.rules.same_text(first, second):
                    self.add(Change.VALUE, place(path, first, second, IN_REFERENCES), first, second)
            elif second is None:
                self.add(Change.MISSING, path, first, None)
            else:
                self.add(Change.EXTRA, path, None, second)

    def add(self, change: Change, path: str, one: object, other: object) -> None:
        field = f"{change.value} {path}"
        if field not in self.seen:
            self.seen.add(field)
            self.findings.add(change, path, one, other)


def _beginning(tags: list[str]) -> list[str]:
    """The tags that begin an element."""
    return [tag for tag in tags if tag[1:2] not in "/!?"]


def _element(tag: str) -> tuple[str, str]:
    """A tag's name, and the tag."""
    found = _NAME.match(tag)
    return ("" if found is None else found[1].lower()), tag


def _by_name(tags: list[str]) -> dict[str, list[str]]:
    """Group elements by their paths."""
    found: dict[str, list[str]] = {}
    for tag in tags:
        found.setdefault(_path(_attributes(tag), tag), []).append(tag)
    return found


def _path(attributes: dict[str, str], tag: str) -> str:
    name = _element(tag)[0]
    path = f"body.{shortened(name)}" if name else "body.tag"
    if name in _TOLD:
        told = next((attributes[key] for key in _TELLING if attributes.get(key)), "")
        if told:
            path += f".{shortened(told)}"
    return path


def _attributes(tag: str) -> dict[str, str]:
    """The attributes as written, by lower-case name; of several with one name the first counts (HTML, 13.2.5.33)."""
    begins = _NAME.match(tag)
    found: dict[str, str] = {}
    if begins is not None:
        for name, double, single, bare in _ATTRIBUTE.findall(tag, begins.end(), len(tag) - 1):
            found.setdefault(name.lower(), double or single or bare)
    return found


def _value(name: str, written: str) -> str:
    """The meaning of an attribute that is written like this."""
    words = _unescaped(written).split()
    return " ".join(sorted({*words}) if name == "class" else words)


def _written(tags: list[str]) -> str:
    return "\n".join(tags[:20])
