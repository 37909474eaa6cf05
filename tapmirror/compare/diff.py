# SPDX-License-Identifier: Apache-2.0
"""What two responses to one request differ in: status, header fields, body.

Theory of operation
-------------------
A difference has a *kind* and the *path* of a field, so that the same difference in many exchanges can be counted as
one.  Paths are `status`, `header.etag`, `body.items[].price`; `[]` stands for any place in an array, `{}` for a name
that is an identifier and no word.  Kinds: the value differs, the type differs, the shadow lacks it (missing), only
the shadow has it (extra), the same elements in another order, another number of elements (length).

* If the status differs, nothing else is compared: the rest follows from it.
* Header fields are compared by name, see `heads`.
* A body that is a JSON object or array on both sides is compared as such, whatever kind of text it is declared as: see
  `documents`.  NaN and Infinity are read as numbers.  Bodies that are declared as JSON, neither of which is, are
  compared as text.
* HTML is compared by its text and the attributes of its elements, see `pages`.
* Tables of text (CSV) are compared by rows and columns, if both have the same columns, see `tables`.
* XML is compared by its elements and their attributes, see `elements`.  What cannot be read as XML is split at its
  tags, and compared as text.
* Text is compared by its lines, see `texts`.
* Everything else is compared as bytes; a multipart body without the boundary between its parts.

What does not count is in `rules`.

All work is bounded: `Rules` says how many bytes, nodes, lines and differences.  What is beyond that number of nodes is
compared as a whole.

Pure.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tapmirror.compare import documents, elements, heads, pages, tables, texts
from tapmirror.compare.bodies import (
    Kind,
    TooLongError,
    UndecodableError,
    decoded,
    is_xml,
    kind_of,
    text_of,
    without_boundaries,
)
from tapmirror.compare.findings import Change, Difference, Findings
from tapmirror.compare.rules import Rules
from tapmirror.exchange import Response
from tapmirror.spec.compare import Level

_CODING: Final = re.compile(rb"\ncontent-encoding[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_TYPE: Final = re.compile(rb"\ncontent-type[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)


class Compared(msgspec.Struct, gc=False):
    """The outcome for one exchange."""

    found: list[Difference]
    skipped: str = ""
    """Why the bodies were not compared, if they were not."""
    looked: int = 0
    """Decoded bytes of both bodies that were inspected, which is what took time.  Bytes of XML count as more."""


def compare(one: Response, other: Response, rules: Rules, *, bodiless: bool = False) -> Compared:
    """What the shadow's response (`other`) differs in from production's, as far as the level says.

    `bodiless`: responses to HEAD, of whose bodies nothing but their length is known.
    """
    if one.status != other.status:
        change = Change.VALUE if other.failure is None else Change.MISSING
        shown = other.status if other.failure is None else other.failure.value
        return Compared([Difference(change, "status", one.status, shown)])
    if rules.level is Level.STATUS:
        return _NOTHING
    if one.head == other.head and one.body == other.body and one.length == other.length == len(one.body):
        return _NOTHING
    findings = Findings(rules)
    if one.head != other.head:
        heads.differ(findings, one.head, other.head)
        if bodiless:
            heads.lengths_differ(findings, one.head, other.head)
    if rules.level is not Level.BODY:
        return Compared(findings.found)
    skipped, looked = _bodies(findings, one, other)
    return Compared(findings.found, skipped, looked)


def _bodies(findings: Findings, one: Response, other: Response) -> tuple[str, int]:
    """Compare the bodies.  Returns why they were not compared (empty: they were), and how many bytes were inspected."""
    limit = findings.rules.decoded_bytes
    if not one.whole or not other.whole:
        return "not seen whole", 0
    coding, its_coding = _value(_CODING, one), _value(_CODING, other)
    if one.length == other.length and coding == its_coding and _same(one, other):
        return "", 0
    cut = len(one.body) < one.length or len(other.body) < other.length
    if cut:
        if coding or its_coding:
            return "compressed and too long", 0
        if one.length == other.length and not (one.digest and other.digest):
            return "too long", 0
        findings.add(Change.VALUE, "body", _measure(one), _measure(other))
        return "", 0
    try:
        # a Content-Encoding may also be there without a body: in responses to HEAD, and with 304
        first = decoded(one.body, coding, limit) if coding and one.body else one.body
        second = decoded(other.body, its_coding, limit) if its_coding and other.body else other.body
    except TooLongError:
        return "too long decoded", 0
    except UndecodableError as error:
        if coding == its_coding:
            findings.add(Change.VALUE, "body", _measure(one), _measure(other))
        return str(error), 0
    type_ = _value(_TYPE, one)
    if first != second:
        _decoded(findings, first, second, type_, _value(_TYPE, other))
    return "", (len(first) + len(second)) * (elements.TIMES if is_xml(type_) else 1)


def _decoded(findings: Findings, one: bytes, other: bytes, type_: bytes, its_type: bytes) -> None:
    kind, its_kind = kind_of(type_, one), kind_of(its_type, other)
    if not one or not other:
        findings.add(Change.MISSING if one else Change.EXTRA, "body", one, other)
    elif kind is not its_kind:
        findings.add(Change.TYPE, "body", one, other)
    elif kind is Kind.JSON and (pair := documents.unlike(one, other)) is not None:
        documents.differ(findings, one, other, *pair)
    elif without_boundaries(one, type_) == without_boundaries(other, its_type):
        pass
    elif kind is not Kind.BYTES and (text := text_of(one, type_)) == text_of(other, its_type):
        texts.differ(findings, text, text)  # in what is no text, if in anything
    elif kind is Kind.JSON:
        mine, its = documents.document(one, type_), documents.document(other, its_type)
        if mine is not None and its is not None:
            documents.differ(findings, one, other, mine, its)
        elif mine is its:
            texts.differ(findings, text_of(one, type_), text_of(other, its_type))
        else:
            findings.add(Change.VALUE, "body", one, other)
    elif (
        _may_be_json(one, type_)
        and _may_be_json(other, its_type)
        and (mine := documents.document(one, type_)) is not None
        and (its := documents.document(other, its_type)) is not None
    ):
        documents.differ(findings, one, other, mine, its)
    elif kind is Kind.HTML:
        pages.differ(findings, text_of(one, type_), text_of(other, its_type))
    elif kind is Kind.TEXT:
        first, second = text_of(one, type_), text_of(other, its_type)
        table, its_table = tables.rows(first, type_), tables.rows(second, its_type)
        if table and its_table and [*table[0]] == [*its_table[0]]:
            documents.differ(findings, one, other, (table, True), (its_table, True))
            return
        if is_xml(type_):
            tree, its_tree = elements.document(one, type_), elements.document(other, its_type)
            if tree is not None and its_tree is not None:
                elements.differ(findings, one, other, tree, its_tree)
                return
            # usually all of it is one line
            first, second = first.replace("><", ">\n<"), second.replace("><", ">\n<")
        texts.differ(findings, first, second)
    else:
        findings.add(Change.VALUE, "body", one, other)


def _may_be_json(body: bytes, type_: bytes) -> bool:
    """Whether a body that is said to be a text may hold JSON."""
    return _BRACKET.match(body) is not None or documents.of_events(type_)


def _same(one: Response, other: Response) -> bool:
    """Whether two bodies of the same length are the same for certain."""
    if len(one.body) == one.length and len(other.body) == other.length:
        return one.body == other.body
    return bool(one.digest) and one.digest == other.digest


def _value(field: re.Pattern[bytes], response: Response) -> bytes:
    found = field.search(response.head)
    return b"" if found is None else found[1]


def _measure(response: Response) -> str:
    start = response.body[:100].decode("utf-8", "replace")
    return f"{response.length} bytes, beginning with {start!r}"


_BRACKET: Final = re.compile(rb"\s*+[{\[]")
_NOTHING: Final = Compared([])
