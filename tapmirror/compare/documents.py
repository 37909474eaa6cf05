# SPDX-License-Identifier: Apache-2.0
"""What two JSON documents differ in, by the paths of their fields.

JSON lines are an array, and so are the events of a stream (text/event-stream) if the data of one is JSON.  If only the
order of an array's elements differs, that is one difference, of order.  If the lengths of two arrays differ, that is
the difference, and their elements are not compared.  Elements that changed *and* are in another order are compared with
those that they belong to (`order`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from tapmirror.compare.bodies import text_of
from tapmirror.compare.findings import Change, Findings
from tapmirror.compare.order import by_member, by_value
from tapmirror.compare.words import shortened

ELEMENTS: Final = 1000
"""Most elements of an array whose order is determined, which takes a few milliseconds at most."""
DEPTH: Final = 48
"""Most levels of JSON that are compared by member; what is deeper is compared as a whole."""

LEVELS: Final = 2
"""Levels of objects that are split into raw members before anything is decoded: responses often have one object around
their content."""
MEMBERS: Final = 128
"""Most members of an object that are split this way; splitting more takes as long as decoding them, as they are usually
small."""
UNLIKE: Final = 16
"""Most differing members of two objects, on all levels; with more, decoding both completely takes less time."""
LINES: Final = 20_000
"""Most lines of a stream of events that is parsed, in some 20 ms; a longer one is compared as text."""

_JSON: Final = msgspec.json.Decoder()
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NO_NUMBER: Final = re.compile(rb"\bNaN\b|\bInfinity\b")
_SORTED: Final = msgspec.json.Encoder(order="sorted")
_FIELDS: Final = ("data", "event", "id", "retry")
"""Fields of an event that count; all others are ignored."""

Document: TypeAlias = tuple[Any, bool]
"""What was read, and whether the body was one of lines or events."""


def document(body: bytes, type_: bytes) -> Document | None:
    """The JSON in a body: one document, or one on each line or in each event.

    A document may be in another character set than RFC 8259, 8.1 requires, and have a byte order mark.
    """
    if of_events(type_):
        return _events(body)
    try:
        return _JSON.decode(body), False
    except _NO_JSON:
        pass
    plain = b""
    try:
        plain = text_of(body, type_).removeprefix("\ufeff").encode()
        try:
            return _JSON.decode(plain), False
        except _NO_JSON:
            return _JSON.decode_lines(plain), True
    except _NO_JSON:
        pass
    return _with_no_numbers(plain) if _NO_NUMBER.search(body) else None


def unlike(one: bytes, other: bytes) -> tuple[Document, Document] | None:
    """Two objects without the members whose bytes are equal on both sides; None: both must be decoded completely.

    Most responses differ in few members, and splitting takes a third of the time of decoding.
    """
    if one[:1] != b"{" or other[:1] != b"{":
        return None
    try:
        if not one.isascii():
            one.decode()
        if not other.isascii():
            other.decode()
        mine, its, _ = _unlike(one, other, LEVELS, UNLIKE)
    except _NOT_APART:
        return None
    return (mine, False), (its, False)


class _UselessError(Exception):
    """Too many members of two objects differ."""


def _unlike(
    one: bytes | msgspec.Raw, other: bytes | msgspec.Raw, levels: int, left: int
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The same, `levels` deep.  Also returns how many more members may differ, of the `left` ones.  Raises what a
    decoder raises, and `_UselessError`.
    """
    mine = _MEMBERS.decode(one)
    if len(mine) > MEMBERS:
        raise _UselessError
    its = _MEMBERS.decode(other)
    names = [name for name, value in mine.items() if its.get(name) != value]
    extra = [name for name in its if name not in mine]
    left -= len(names) + len(extra)
    if left < 0:
        raise _UselessError
    first: dict[str, Any] = {}
    second: dict[str, Any] = {name: _JSON.decode(its[name]) for name in extra}
    for name in names:
        value, its_value = mine[name], its.get(name)
        if its_value is None:
            first[name] = _JSON.decode(value)
        elif levels > 1 and bytes(value)[:1] == b"{" == bytes(its_value)[:1]:
            first[name], second[name], left = _unlike(value, its_value, levels - 1, left)
        else:
            first[name], second[name] = _JSON.decode(value), _JSON.decode(its_value)
    return first, second, left


def _with_no_numbers(plain: bytes) -> Document | None:
    """Decode JSON with NaN and Infinity as numbers, which Python and others write, although RFC 8259, 6 forbids it."""
    try:
        return json.loads(plain), False
    except _NO_JSON:
        return None


def of_events(type_: bytes) -> bool:
    """Whether this Content-Type is a stream of events."""
    return type_.lstrip().lower().startswith(b"text/event-stream")


def _events(body: bytes) -> Document | None:
    """The fields of each event (HTML, 9.2.6), with its data decoded if it is JSON.

    Comments, which only keep a connection alive, are left out.
    """
    if body.count(b"\n") + body.count(b"\r") > LINES:
        return None
    events: list[dict[str, Any]] = []
    fields: dict[str, list[str]] = {}
    read = False
    for line in [*body.removeprefix(b"\xef\xbb\xbf").splitlines(), b""]:
        name, _, value = line.decode("utf-8", "replace").partition(":")
        if name in _FIELDS:
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif not line and fields:
            event: dict[str, Any] = {name: values[-1] for name, values in fields.items()}
            data = "\n".join(fields.get("data", ()))
            if data:
                event["data"] = data
            if data[:1] in ("{", "["):
                try:
                    event["data"] = _JSON.decode(data)
                    read = True
                except _NO_JSON:
                    pass
            events.append(event)
            fields = {}
    return (events, True) if read else None


def differ(findings: Findings, one: bytes, other: bytes, mine: Document, its: Document) -> None:
    """Find what two documents differ in; `one` and `other` are what they were read from."""
    (first, lines), (second, its_lines) = mine, its
    if type(first) is type(second) and lines is not its_lines:  # a client that reads an array cannot read lines
        findings.add(Change.TYPE, "body", one, other)
        return

    def as_many() -> bool:
        return one.count(b"true") == other.count(b"true") and one.count(b"false") == other.count(b"false")

    try:
        Search(findings, as_many).values(first, second, "body", DEPTH)
    except RecursionError:  # what lies below DEPTH is too deep even to be compared as a whole
        findings.add(Change.VALUE, "body", one, other)


def at(value: Any, path: str, here: str = "body") -> Iterator[Any]:
    """The values that a document has at the path of a difference."""
    if here == path:
        yield value
    elif path.startswith(f"{here}[]") and type(value) is list:
        for each in value:
            yield from at(each, path, f"{here}[]")
    elif path.startswith(f"{here}.") and type(value) is dict:
        for name, each in value.items():
            yield from at(each, path, f"{here}.{shortened(name)}")


class Search:
    """One comparison, with what remains of its bounds."""

    __slots__ = ("add", "budget", "encoded", "found", "most", "pruned", "prunes", "rules")

    step = "[]"
    """What stands for any place of an array in a path."""

    def __init__(self, findings: Findings, prunes: Callable[[], bool]) -> None:
        self.rules = findings.rules
        self.add = findings.add
        self.found = findings.found
        self.most = findings.most
        self.budget = findings.rules.nodes
        self.encoded = findings.rules.encoded_bytes
        self.prunes = prunes
        """Whether arrays and objects that are equal for Python can be skipped.  For Python, true and 1 are equal, so
        only if both documents have equally many of true and of false.  NOTE: a document with true in place of 1, and 1
        in place of true, is missed."""
        self.pruned: bool | None = None
        """The result of `prunes`; None: it was not called yet."""

    def values(self, one: Any, other: Any, path: str, depth: int) -> None:
        """Compare two JSON values."""
        self.budget -= 1
        kind = type(one)
        if kind is not type(other):
            if kind in _NUMBERS and type(other) in _NUMBERS:
                if not self.rules.close(one, other):
                    self.add(Change.VALUE, path, one, other)
            else:
                self.add(Change.TYPE, path, one, other)
        elif kind is dict:
            if self.equal(one, other):
                return
            if depth and self.budget > 0:
                self.objects(one, other, path, depth - 1)
            elif one != other:
                self.add(Change.VALUE, path, one, other)
        elif kind is list:
            if self.equal(one, other):
                return
            if len(one) != len(other):
                self.add(Change.LENGTH, path, one, other)
            elif depth and self.budget > 0:
                self.arrays(one, other, path, depth - 1)
            elif one != other:
                self.add(Change.VALUE, path, one, other)
        elif one != other:
            if kind is str:
                if not self.rules.same_text(one, other):
                    self.add(Change.VALUE, path, one, other)
            elif kind is bool or not self.rules.close(one, other):
                self.add(Change.VALUE, path, one, other)

    def equal(self, one: Any, other: Any) -> bool:
        """Whether two arrays or objects are equal for certain."""
        if self.pruned is False or one != other:
            return False
        if self.pruned is None:
            self.pruned = self.prunes()
        return self.pruned

    def objects(self, one: dict[str, Any], other: dict[str, Any], path: str, depth: int) -> None:
        """Compare two objects, member by member."""
        values = self.values
        for name, value in one.items():
            its = other.get(name, _ABSENT)
            if its is _ABSENT:
                self.budget -= 1
                self.add(Change.MISSING, f"{path}.{shortened(name)}", value, None)
                if len(self.found) >= self.most:
                    return
            elif value is not its:
                if type(value) is str and type(its) is str and value == its:
                    self.budget -= 1
                else:
                    values(value, its, f"{path}.{shortened(name)}", depth)
                    if len(self.found) >= self.most:
                        return
        if len(other) > len(one) or other.keys() != one.keys():
            for name, its in other.items():
                if name not in one:
                    self.budget -= 1
                    self.add(Change.EXTRA, f"{path}.{shortened(name)}", None, its)
                    if len(self.found) >= self.most:
                        return

    def arrays(self, one: list[Any], other: list[Any], path: str, depth: int) -> None:
        """Compare two arrays of equal length."""
        before = len(self.found)
        self.pairs(one, other, path + self.step, depth)
        if len(self.found) == before or not 2 <= len(one) <= self.rules.nodes or self.encoded <= 0:
            return
        mine, its = [*map(_SORTED.encode, one)], [*map(_SORTED.encode, other)]
        self.encoded -= sum(map(len, mine)) + sum(map(len, its))
        if sorted(mine) == sorted(its):
            del self.found[before:]
            self.add(Change.ORDER, path, one, other)
            return
        if len(one) > ELEMENTS:
            return
        order = by_member(one, other) or by_value(mine, its)
        if order is not None and order != [*range(len(one))] and self.budget > 0:
            del self.found[before:]
            self.add(Change.ORDER, path, one, other)
            self.pairs(one, [other[at] for at in order], path + self.step, depth)

    def pairs(self, one: list[Any], other: list[Any], path: str, depth: int) -> None:
        """Compare each element with the one at the same place."""
        for at, (mine, its) in enumerate(zip(one, other, strict=True), 1):
            self.values(mine, its, path, depth)
            if len(self.found) >= self.most:
                break
            if self.budget <= 0:
                rest, its_rest = one[at:], other[at:]
                if rest != its_rest:
                    self.add(Change.VALUE, path, rest, its_rest)
                break


_NO_JSON: Final = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)
_NOT_APART: Final = (*_NO_JSON, _UselessError)
_ABSENT: Final = object()
_NUMBERS: Final = (int, float)
