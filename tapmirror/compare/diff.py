# SPDX-License-Identifier: Apache-2.0
"""What two answers to one request differ in: status, header fields, body.

Theory of operation
-------------------
A difference has a *kind* and the *path* of a field, so that the same difference in many exchanges can be counted as
one.  Paths are `status`, `header.etag`, `body.items[].price`; `[]` stands for any place in an array, `{}` for a name
that is an identifier and no word.  Kinds: the value differs, the type differs, the shadow lacks it (missing), only
the shadow has it (extra), the same elements in another order, another number of elements (length).

* Where the status differs nothing else is compared: the rest follows from it.
* JSON numbers are equal if they are within a relative tolerance (two whole ones if they are the same), and times
  (RFC 3339) within one in seconds.
* What is a JSON object or array on both sides is compared as such, whatever text it is said to be.  JSON lines are an
  array.  What is said to be JSON and is none on either side (`NaN`) is text.
* An array whose elements differ in their places only is one difference of order; of arrays of different length that is
  the difference, and their elements are not compared.  Elements that changed *and* are in another order are held
  against those they belong to: by a member that tells them apart (an `id`), or as those left when equal ones have
  found each other.
* HTML is its text: without tags, comments, scripts and styles, white space as one space.
* Text is its lines, XML also its tags where one follows another.  Lines that differ in digits and long tokens only are
  a field of their own, named by a hash of the rest of the line: so a line with the time of day, which differs always,
  hides no other.
* Everything else is its bytes.

All work is bounded: `Rules` says how many bytes, nodes, lines and differences.  What is beyond the nodes is compared
as a whole.

Pure.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from tapmirror.compare.bodies import Kind, TooLongError, UndecodableError, decoded, kind_of, text_of
from tapmirror.compare.words import shortened
from tapmirror.exchange import Answer
from tapmirror.spec.compare import IGNORED_HEADERS, ROUNDING, Compare, Level

PATH: Final = 200
"""Characters of a path; names within are cut to 60."""
LINES: Final = 2000
"""Of a text that are compared one by one; the others as a whole."""
ELEMENTS: Final = 1000
"""Of an array whose order is found out: that costs some milliseconds at most."""
ENCODED: Final = 4
"""Times the longest body, that arrays are encoded for their order in one comparison: each level of arrays that differ
takes twice its length, and what is in another order is compared once more."""
MEMBERS: Final = 16
"""Of an object that may tell it from others of its array."""
DEPTH: Final = 48
"""Of JSON that is looked into; what is deeper is compared as a whole."""

_JSON: Final = msgspec.json.Decoder()
_SORTED: Final = msgspec.json.Encoder(order="sorted")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]{0,10}(?:Z|[+-]\d\d:?\d\d)?")
_CODING: Final = re.compile(rb"\ncontent-encoding[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_TYPE: Final = re.compile(rb"\ncontent-type[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^<>]*>")
_BLOCK: Final = re.compile(
    r"</?(?=[abdhlopstu])"  # or each `<` of a page of them is tried against every name
    r"(?:p|div|br|li|ul|ol|tr|td|th|table|h[1-6]|section|article|title|body|head|option|hr)\b[^<>]*>",
    re.IGNORECASE,
)
_ENTITY: Final = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#39|#x27);")
_ENTITIES: Final = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " ", "&#39;": "'", "&#x27;": "'"}
_VARIABLE: Final = re.compile(r"[0-9A-Za-z+/_=-]{20,}|[0-9a-fA-F-]{8,}|\d+")


_Document: TypeAlias = tuple[Any, bool]
"""What was read, and whether it is that of lines."""


class Change(enum.Enum):
    """The kind of a difference."""

    VALUE = "value"
    TYPE = "type"
    MISSING = "missing"
    EXTRA = "extra"
    ORDER = "order"
    LENGTH = "length"


class Difference(msgspec.Struct, gc=False):
    """One difference; `one` is production's value, `other` the shadow's."""

    change: Change
    path: str
    one: Any = None
    other: Any = None

    @property
    def field(self) -> str:
        """What it is counted by."""
        return f"{self.change.value} {self.path}"


class Expression(Protocol):
    """A compiled expression (RE2)."""

    def sub(self, replacement: str, text: str) -> str:
        """As re.sub."""


class Rules:
    """What is compared, and what does not count."""

    def __init__(
        self, spec: Compare, expressions: Iterable[Expression] = (), shown: Callable[[str], str] | None = None
    ) -> None:
        """`expressions` are `spec.ignore_patterns`, compiled; `shown` takes what must not be shown out of a path."""
        self.shown = shown
        self.level = spec.level
        ignored = () if spec.all_headers else IGNORED_HEADERS
        self.headers = frozenset(name.lower().encode() for name in (*ignored, *spec.ignore_headers))
        self.ignored = _paths(spec.ignore_paths) if spec.ignore_paths else None
        self.expressions = tuple(expressions)
        self.float_tolerance = spec.float_tolerance
        self.time_tolerance = spec.time_tolerance
        self.decoded_bytes = spec.decoded_bytes
        self.encoded_bytes = ENCODED * max(spec.body_bytes, spec.decoded_bytes)
        self.nodes = spec.nodes
        self.differences = spec.differences


class Compared(msgspec.Struct, gc=False):
    """The outcome for one exchange."""

    found: list[Difference]
    skipped: str = ""
    """Why the bodies were not compared, if they were not."""
    looked: int = 0
    """Bytes of both bodies, decoded, that were looked into: what it took time for."""


def compare(one: Answer, other: Answer, rules: Rules) -> Compared:
    """What the shadow's answer (`other`) differs in from production's, as far as the level says."""
    if one.status != other.status:
        change = Change.VALUE if other.failure is None else Change.MISSING
        shown = other.status if other.failure is None else other.failure.value
        return Compared([Difference(change, "status", one.status, shown)])
    if rules.level is Level.STATUS:
        return _NOTHING
    if one.head == other.head and one.body == other.body and one.length == other.length == len(one.body):
        return _NOTHING
    search = _Search(rules)
    if one.head != other.head and _may_differ(one.head, other.head, rules.headers):
        search.headers(fields(one.head), fields(other.head))
    skipped = ""
    if rules.level is Level.BODY:
        skipped = search.bodies(one, other)
    return Compared(search.found, skipped, search.looked)


def _may_differ(one: bytes, other: bytes, ignored: frozenset[bytes]) -> bool:
    """Whether two heads have different lines whose names count.  Most differ in Date and identifiers only."""
    mine, its = one.split(b"\n"), other.split(b"\n")
    lines, its_lines = {*mine}, {*its}
    if len(lines) < len(mine) or len(its_lines) < len(its):  # a line twice may be there once on the other side
        return True
    for line in lines ^ its_lines:
        name, colon, _ = line.partition(b":")
        if colon and name.strip().lower() not in ignored:
            return True
    return False


def fields(head: bytes) -> dict[bytes, bytes]:
    """Of a response's head: values by lower-case name; several of one name joined by a line break."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            before = found.get(name)
            found[name] = value if before is None else before + b"\n" + value
    return found


class _Search:
    """One comparison: its differences, and how much it may still do."""

    __slots__ = ("budget", "encoded", "found", "looked", "most", "prunes", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.found: list[Difference] = []
        self.most = rules.differences
        """When so many are found, objects and arrays are looked through no further."""
        self.budget = rules.nodes
        self.encoded = rules.encoded_bytes
        self.looked = 0
        self.prunes = False
        """Equal values need not be looked into.  For Python, true and 1 are equal: so only where both documents have
        as many of true and of false.  NOTE: one that has true in place of 1, and 1 in place of true, is missed."""

    def add(self, change: Change, path: str, one: Any, other: Any) -> None:
        ignored = self.rules.ignored
        if ignored is not None and ignored.match(path[:PATH]):
            return
        if len(self.found) < self.most:
            if self.rules.shown is not None:
                path = self.rules.shown(path)
            path = path[:PATH]
            self.found.append(Difference(change, path, one, other))

    def headers(self, one: dict[bytes, bytes], other: dict[bytes, bytes]) -> None:
        ignored = self.rules.headers
        for name in one.keys() | other.keys():
            mine, its = one.get(name), other.get(name)
            if mine == its or name in ignored:
                continue
            if mine is not None and its is not None and name == b"set-cookie":
                mine, its = _cookies(mine), _cookies(its)
                if mine == its:
                    continue
            path = "header." + shortened(name.decode("latin-1"))
            if its is None:
                self.add(Change.MISSING, path, mine, None)
            elif mine is None:
                self.add(Change.EXTRA, path, None, its)
            elif not self.same_text(mine.decode("latin-1"), its.decode("latin-1")):
                self.add(Change.VALUE, path, mine, its)

    def bodies(self, one: Answer, other: Answer) -> str:
        """Compare the bodies; says why not, if not."""
        if not one.whole or not other.whole:
            return "not seen whole"
        coding, its_coding = _value(_CODING, one), _value(_CODING, other)
        if one.length == other.length and coding == its_coding and _same(one, other):
            return ""
        cut = len(one.body) < one.length or len(other.body) < other.length
        if cut:
            if coding or its_coding:
                return "compressed and too long"
            if one.length == other.length and not (one.digest and other.digest):
                return "too long"
            self.add(Change.VALUE, "body", _measure(one), _measure(other))
            return ""
        try:
            first = decoded(one.body, coding, self.rules.decoded_bytes) if coding else one.body
            second = decoded(other.body, its_coding, self.rules.decoded_bytes) if its_coding else other.body
        except TooLongError:
            return "too long decoded"
        except UndecodableError as error:
            if coding == its_coding:
                self.add(Change.VALUE, "body", _measure(one), _measure(other))
            return str(error)
        self.looked = len(first) + len(second)
        if first != second:
            self.decoded(first, second, _value(_TYPE, one), _value(_TYPE, other))
        return ""

    def decoded(self, one: bytes, other: bytes, type_: bytes, its_type: bytes) -> None:
        kind, its_kind = kind_of(type_, one), kind_of(its_type, other)
        if not one or not other:
            self.add(Change.MISSING if one else Change.EXTRA, "body", one, other)
        elif kind is not its_kind:
            self.add(Change.TYPE, "body", one, other)
        elif kind is Kind.JSON:
            mine, its = _document(one, type_), _document(other, its_type)
            if mine is not None and its is not None:
                self.json(one, other, mine, its)
            elif mine is its:
                self.text(text_of(one, type_), text_of(other, its_type))
            else:
                self.add(Change.VALUE, "body", one, other)
        elif (
            _BRACKET.match(one)
            and _BRACKET.match(other)
            and (mine := _document(one, type_)) is not None
            and (its := _document(other, its_type)) is not None
        ):
            self.json(one, other, mine, its)
        elif kind is Kind.HTML:
            self.lines(list(html_lines(text_of(one, type_))), list(html_lines(text_of(other, its_type))))
        elif kind is Kind.TEXT:
            first, second = text_of(one, type_), text_of(other, its_type)
            if b"xml" in type_.lower():  # as a rule all of it is one line
                first, second = first.replace("><", ">\n<"), second.replace("><", ">\n<")
            self.text(first, second)
        else:
            self.add(Change.VALUE, "body", one, other)

    def text(self, one: str, other: str) -> None:
        """Two texts that come from different bytes."""
        if one == other and "\ufffd" in one:  # what is no text is the same in both
            self.add(Change.VALUE, "body.lines", one, other)
        else:
            self.lines(one.splitlines(), other.splitlines())

    def json(self, one: bytes, other: bytes, mine: _Document, its: _Document) -> None:
        """Two documents, and what they were read from."""
        (first, lines), (second, its_lines) = mine, its
        if type(first) is type(second) and lines is not its_lines:  # who reads an array cannot read lines
            self.add(Change.TYPE, "body", one, other)
            return
        self.prunes = one.count(b"true") == other.count(b"true") and one.count(b"false") == other.count(b"false")
        try:
            self.values(first, second, "body", DEPTH)
        except RecursionError:  # what lies below DEPTH is too deep even to be compared as a whole
            self.add(Change.VALUE, "body", one, other)

    def values(self, one: Any, other: Any, path: str, depth: int) -> None:
        """Two JSON values."""
        self.budget -= 1
        kind = type(one)
        if kind is not type(other):
            if kind in _NUMBERS and type(other) in _NUMBERS:
                if not self.close(one, other):
                    self.add(Change.VALUE, path, one, other)
            else:
                self.add(Change.TYPE, path, one, other)
        elif self.prunes and one == other:
            return
        elif kind is dict:
            if depth and self.budget > 0:
                self.objects(one, other, path, depth - 1)
            elif one != other:
                self.add(Change.VALUE, path, one, other)
        elif kind is list:
            if len(one) != len(other):
                self.add(Change.LENGTH, path, one, other)
            elif depth and self.budget > 0:
                self.arrays(one, other, path + "[]", depth - 1)
            elif one != other:
                self.add(Change.VALUE, path, one, other)
        elif one != other:
            if kind is str:
                if not self.same_text(one, other):
                    self.add(Change.VALUE, path, one, other)
            elif kind is bool or not self.close(one, other):
                self.add(Change.VALUE, path, one, other)

    def objects(self, one: dict[str, Any], other: dict[str, Any], path: str, depth: int) -> None:
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
        """Of equal length."""
        before = len(self.found)
        self.pairs(one, other, path, depth)
        if len(self.found) == before or not 2 <= len(one) <= self.rules.nodes or self.encoded <= 0:
            return
        mine, its = [*map(_SORTED.encode, one)], [*map(_SORTED.encode, other)]
        self.encoded -= sum(map(len, mine)) + sum(map(len, its))
        if sorted(mine) == sorted(its):
            del self.found[before:]
            self.add(Change.ORDER, path[:-2], one, other)
            return
        if len(one) > ELEMENTS:
            return
        order = _by_member(one, other) or _by_value(mine, its)
        if order is not None and order != [*range(len(one))] and self.budget > 0:
            del self.found[before:]
            self.add(Change.ORDER, path[:-2], one, other)
            self.pairs(one, [other[at] for at in order], path, depth)

    def pairs(self, one: list[Any], other: list[Any], path: str, depth: int) -> None:
        """Each element with the other's at its place."""
        for at, (mine, its) in enumerate(zip(one, other, strict=True), 1):
            self.values(mine, its, path, depth)
            if len(self.found) >= self.most:
                break
            if self.budget <= 0:
                rest, its_rest = one[at:], other[at:]
                if rest != its_rest:
                    self.add(Change.VALUE, path, rest, its_rest)
                break

    def close(self, one: Any, other: Any) -> bool:
        """Whether two numbers are equal within the tolerance.  The default is for what additions make of fractions: two
        identifiers or amounts of ten digits, of which the last differs, would be equal within it.
        """
        tolerance = self.rules.float_tolerance
        if tolerance <= ROUNDING and type(one) is int and type(other) is int:
            return one == other
        try:
            return bool(one == other or (tolerance and abs(one - other) <= tolerance * max(abs(one), abs(other))))
        except OverflowError:  # an integer longer than any float
            return False

    def same_text(self, one: str, other: str) -> bool:
        """Whether two texts are equal but for what does not count."""
        if self.rules.time_tolerance and _TIME.fullmatch(one) and _TIME.fullmatch(other):
            apart = _seconds_between(one, other)
            if apart is not None and apart <= self.rules.time_tolerance:
                return True
        for expression in self.rules.expressions:
            one, other = expression.sub("", one), expression.sub("", other)
        return bool(self.rules.expressions) and one == other

    def lines(self, one: list[str], other: list[str]) -> None:
        if one[LINES:] != other[LINES:]:
            self.add(Change.VALUE, "body.lines", "\n".join(one[LINES:][:20]), "\n".join(other[LINES:][:20]))
        one, other = one[:LINES], other[:LINES]
        if len(one) != len(other):
            mine, its = Counter(one), Counter(other)
            gone, new = list((mine - its).elements()), list((its - mine).elements())
            if gone:
                self.add(Change.MISSING, "body.lines", "\n".join(gone[:20]), None)
            if new:
                self.add(Change.EXTRA, "body.lines", None, "\n".join(new[:20]))
            return
        seen = set()
        for mine_, its_ in zip(one, other, strict=True):
            if mine_ != its_ and not self.same_text(mine_, its_):
                name = _VARIABLE.sub("#", mine_[:400])
                path = "body.lines"
                if name == _VARIABLE.sub("#", its_[:400]):
                    path = f"body.lines[{_line_name(name)}]"
                if path not in seen:
                    seen.add(path)
                    self.add(Change.VALUE, path, mine_, its_)


def _document(body: bytes, type_: bytes) -> _Document | None:
    """The JSON that a body is: a document, as RFC 8259, 8.1 has it or in another character set or with a mark of the
    byte order; or one on each line.
    """
    try:
        return _JSON.decode(body), False
    except _NO_JSON:
        pass
    try:
        plain = text_of(body, type_).removeprefix("\ufeff").encode()
        try:
            return _JSON.decode(plain), False
        except _NO_JSON:
            return _JSON.decode_lines(plain), True
    except _NO_JSON:
        return None


def _line_name(line: str) -> str:
    """Of a line without its numbers: a hash, for names are shown and its text may be a secret."""
    return blake2b(" ".join(line.split()).encode("utf-8", "replace"), digest_size=4).hexdigest()


def html_lines(text: str) -> Iterator[str]:
    """What of HTML is text: a line for each block, white space as one space, no empty ones."""
    text = _BLOCK.sub("\n", _without(text))
    text = _TAG.sub("", text)
    text = _ENTITY.sub(lambda found: _ENTITIES[found[0]], text)
    for line in text.split("\n"):
        line = " ".join(line.split())
        if line:
            yield line


def _without(text: str) -> str:
    """Without comments, scripts and styles.  One that has no end goes on to the end."""
    kept = []
    lower = text.lower() if text.isascii() else text
    pos = 0
    for found in _HIDDEN.finditer(lower):
        if found.start() < pos:
            continue
        end = {"<!--": "-->", "<scr": "</script", "<sty": "</style"}[found[0][:4]]
        kept.append(text[pos : found.start()])
        at = lower.find(end, found.end())
        if at < 0:
            return "".join(kept)
        at = lower.find(">", at)
        if at < 0:
            return "".join(kept)
        pos = at + 1
    return "".join(kept) + text[pos:]


_HIDDEN: Final = re.compile(r"<!--|<script\b|<style\b")


def _paths(patterns: Iterable[str]) -> re.Pattern[str]:
    """Paths as in `redact.json`, with `body.` before them if they name nothing else: they and all within them.

    Matching takes time that is bounded by the square of a path's length, whatever the patterns: what stands between
    two `**` is taken where it is first found and not looked for again (`(?>...)`), for whatever follows may come
    any number of steps later; between two `*` of one step likewise.
    """
    choices = []
    for pattern in patterns:
        if not pattern.startswith(("body", "header.", "status")):
            pattern = f"body.{pattern}" if not pattern.startswith("[]") else f"body{pattern}"
        first, *parts = _ANY_DEPTH.split(pattern)
        found = _steps(first)
        if parts:
            found += _DOWN
            for part in parts[:-1]:
                found += f"(?>{_DEEPER}*?{_steps(part)}{_DOWN})"
            if parts[-1]:
                found += f"{_DEEPER}*{_steps(parts[-1])}"
        choices.append(found if parts and not parts[-1] else found + _END)
    return re.compile("|".join(choices))


def _steps(pattern: str) -> str:
    """A part of a path without `**`."""
    found = []
    for step in re.findall(r"\[\]|\.|(?:[^.\[]|\[(?!\]))+", pattern):
        first, *others = [re.escape(each) for each in re.split(r"\*+", step)]
        found.append(first)
        if others:
            found += [rf"(?>[^.\[]*?{each})" for each in others[:-1]]
            found.append(rf"[^.\[]*{others[-1]}")
    return "".join(found)


_ANY_DEPTH: Final = re.compile(r"(?:\.\*\*)+(?=\.|\Z)\.?")
"""`**` as a step of its own; several at once are one."""
_DOWN: Final = r"(?:\[\])*\."
_DEEPER: Final = r"(?:[^.]*\.)"
_END: Final = r"(?=[.\[]|\Z)"


def _same(one: Answer, other: Answer) -> bool:
    """Whether two bodies of the same length are the same for certain."""
    if len(one.body) == one.length and len(other.body) == other.length:
        return one.body == other.body
    return bool(one.digest) and one.digest == other.digest


def _value(field: re.Pattern[bytes], answer: Answer) -> bytes:
    found = field.search(answer.head)
    return b"" if found is None else found[1]


def _measure(answer: Answer) -> str:
    start = answer.body[:100].decode("utf-8", "replace")
    return f"{answer.length} bytes, beginning with {start!r}"


def _cookies(value: bytes) -> bytes:
    """Cookies without their values and times: sessions differ always."""
    kept = []
    for line in value.split(b"\n"):
        name, *attributes = line.split(b";")
        kept.append(
            b"; ".join(
                [
                    name.partition(b"=")[0].strip() + b"=",
                    *sorted(
                        each.strip().lower()
                        for each in attributes
                        if not each.strip().lower().startswith((b"expires", b"max-age"))
                    ),
                ]
            )
        )
    return b"\n".join(sorted(kept))


def _by_member(one: list[Any], other: list[Any]) -> list[int] | None:
    """For each object its partner's place, if a member has a value of its own in each, the same ones on both sides.

    One that is called `id`, or like it, comes first.
    """
    if not all(type(each) is dict for each in (*one, *other)):
        return None
    names = sorted([*one[0]][:MEMBERS], key=lambda name: not name.lower().endswith("id"))
    for name in names:
        mine, its = [each.get(name) for each in one], [each.get(name) for each in other]
        if not all(type(value) in (str, int) for value in (*mine, *its)):
            continue
        places = {value: at for at, value in enumerate(its)}
        if len(places) == len(its) and places.keys() == {*mine}:
            return [places[value] for value in mine]
    return None


def _by_value(one: list[bytes], other: list[bytes]) -> list[int] | None:
    """The same, if half of the elements or more are equal to one of the others: what is left goes by its place."""
    places: dict[bytes, deque[int]] = {}
    for at, value in enumerate(other):
        places.setdefault(value, deque()).append(at)
    found = [places[value].popleft() if places.get(value) else -1 for value in one]
    if 2 * found.count(-1) > len(found):
        return None
    left = iter(sorted({*range(len(one))} - {*found}))
    return [at if at >= 0 else next(left) for at in found]


def _seconds_between(one: str, other: str) -> float | None:
    try:
        first, second = datetime.datetime.fromisoformat(one), datetime.datetime.fromisoformat(other)
        return abs((first - second).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no such day; only one of them names its zone
        return None


_NO_JSON: Final = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)
_BRACKET: Final = re.compile(rb"\s*+[{\[]")
_NOTHING: Final = Compared([])
_ABSENT: Final = object()
_NUMBERS: Final = (int, float)
