# SPDX-License-Identifier: Apache-2.0
"""XML as a document like that of JSON, so that each difference is a field with a path.  For SOAP, feeds and other XML.

An element with nothing but text becomes that text.  Any other has its attributes (`@href`), its child elements by name
(several of one name as an array), and its text as `#text`.  A path is `body.feed.entry.link.@href`: arrays have no sign
of their own, because one element and several of a name are the same field.

Ignored are the amount of white space, the order of attributes, quotes, comments, processing instructions, how
characters are written (references, CDATA), and prefixes of names: an element in another namespace than its parent has
it as `@xmlns`.  If the same names come in another order within an element, that is a difference.

NOTE: how elements of several names alternate, and where text stands between them, is not seen.  Nor is the namespace of
an attribute, unless the element has two of that name (`href`, `xlink:href`): then the one without a namespace, or the
first, is `@href`, and the other `@{http://www.w3.org/1999/xlink}href`.

What comes from the network is hostile.  XML with a document type, which can declare entities that expand each other, is
not read; neither is XML that is too deep or has too many elements.  The caller compares these as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from xml.parsers import expat

import msgspec

from tapmirror.compare.bodies import text_of
from tapmirror.compare.documents import Search
from tapmirror.compare.findings import Change, Findings
from tapmirror.compare.words import shortened

DEPTH: Final = 64
"""Most levels of elements; deeper XML is not read."""
ELEMENTS: Final = 5000
"""Most elements and attributes, some 15 ms at worst; XML with more is not read."""
TIMES: Final = 3
"""How many times as long XML takes as another body of its length: two of 4 KB take 0.5 ms, of 60 KB 6 ms."""
TEXT: Final = "#text"
_NAMESPACE: Final = "@xmlns"
_BETWEEN: Final = " "
"""Separates a namespace from the name in it; neither contains a space."""


class _NotReadError(Exception):
    """XML that is not read."""


class Document(msgspec.Struct, gc=False, frozen=True):
    """XML that was read."""

    root: dict[str, Any]
    """The outermost element, as the only member of an object, by its name."""
    names: list[str]
    """Names of all elements, in the order of the text."""


def document(body: bytes, type_: bytes) -> Document | None:
    """XML that was read; None: it is not XML (XML 1.0, Namespaces 1.0), or is not read.

    Invalid characters are not replaced, because two different ones would become equal.
    """
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=_BETWEEN)
    parser.buffer_text = parser.ordered_attributes = True
    parser.StartDoctypeDeclHandler = _refused
    parser.StartElementHandler = reader.begins
    parser.EndElementHandler = reader.ends
    parser.CharacterDataHandler = reader.texts.append
    try:
        parser.Parse(text_of(body, type_, "strict"), True)
    except (expat.ExpatError, _NotReadError, ValueError):
        return None
    return Document(reader.open[0], reader.names)


def _refused(*_: object) -> None:
    raise _NotReadError


class _Reader:
    """What has been read so far."""

    __slots__ = ("known", "left", "names", "open", "spaces", "texts")

    def __init__(self) -> None:
        self.open: list[dict[str, Any]] = [{}]
        self.spaces = [""]
        self.left = ELEMENTS
        self.names: list[str] = []
        self.texts: list[str] = []
        """Pieces of text in the open element since the last tag."""
        self.known: dict[str, tuple[str, str]] = {}
        """(namespace, name) of the names met so far, by the name as it is written."""

    def begins(self, written: str, attributes: list[str]) -> None:
        """A start tag; names and values of attributes take turns."""
        if self.texts:
            self._text(self.open[-1])
        self.left -= 1 + len(attributes) // 2
        if self.left < 0 or len(self.open) > DEPTH:
            raise _NotReadError
        both = self.known.get(written)
        if both is None:
            space, _, name = written.rpartition(_BETWEEN)
            both = self.known[written] = space, name
        space, name = both
        self.names.append(name)
        found: dict[str, Any] = {}
        if space != self.spaces[-1]:
            found[_NAMESPACE] = space
        before = len(found)
        for at_ in range(0, len(attributes), 2):
            found[f"@{attributes[at_].rpartition(_BETWEEN)[2]}"] = attributes[at_ + 1]
        if len(found) - before < len(attributes) // 2:
            found = _told_apart(attributes, {_NAMESPACE: space} if before else {})
        self.open.append(found)
        self.spaces.append(space)

    def ends(self, written: str) -> None:
        """An end tag."""
        found: Any = self.open.pop()
        self.spaces.pop()
        if self.texts:
            self._text(found)
        if not found:
            found = ""
        elif len(found) == 1 and TEXT in found:
            found = found[TEXT]
        name = self.known[written][1]
        parent = self.open[-1]
        before = parent.get(name)
        if before is None:
            parent[name] = found
        elif type(before) is list:
            before.append(found)
        else:
            parent[name] = [before, found]

    def _text(self, element: dict[str, Any]) -> None:
        text = " ".join("".join(self.texts).split())
        self.texts.clear()
        if text:
            element[TEXT] = f"{element[TEXT]} {text}" if TEXT in element else text


def _told_apart(attributes: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Add attributes of one name in different namespaces to what is found: all but the first with their namespace."""
    names = (written.rpartition(_BETWEEN) for written in attributes[::2])
    for (space, _, name), value in sorted(zip(names, attributes[1::2], strict=True)):
        found[f"@{{{space}}}{name}" if f"@{name}" in found else f"@{name}"] = value
    return found


def differ(findings: Findings, one: bytes, other: bytes, mine: Document, its: Document) -> None:
    """Find what two documents differ in; `one` and `other` are what they were read from."""
    try:
        _Search(findings, lambda: mine.names == its.names).values(mine.root, its.root, "body", 2 * DEPTH)
    except RecursionError:
        findings.add(Change.VALUE, "body", one, other)


def at(value: Any, path: str, here: str = "body") -> Iterator[Any]:
    """The values that a document has at the path of a difference."""
    if type(value) is list:
        for each in value:
            yield from at(each, path, here)
    elif here == path:
        yield value
    elif path.startswith(f"{here}.") and type(value) is dict:
        for name, each in value.items():
            yield from at(each, path, f"{here}.{shortened(name)}")


class _Search(Search):
    """One comparison."""

    __slots__ = ()

    step = ""

    def values(self, one: Any, other: Any, path: str, depth: int) -> None:
        """Compare two elements, or two arrays of them."""
        if type(one) is not type(other):
            if type(one) is list or type(other) is list:
                self.budget -= 1
                self.add(Change.LENGTH, path, one, other)
                return
            one, other = _whole(one), _whole(other)
        super().values(one, other, path, depth)

    def objects(self, one: dict[str, Any], other: dict[str, Any], path: str, depth: int) -> None:
        """Compare two elements by what they have, and by the order of the elements in them."""
        if one.keys() == other.keys() and (order := _elements(one)) != (its_order := _elements(other)):
            self.add(Change.ORDER, path, order, its_order)
        super().objects(one, other, path, depth)


def _elements(element: dict[str, Any]) -> list[str]:
    return [name for name in element if not name.startswith(("@", "#"))]


def _whole(element: str | dict[str, Any]) -> dict[str, Any]:
    """An element as an object, even if it has nothing but text."""
    if type(element) is dict:
        return element
    return {TEXT: element} if element else {}
