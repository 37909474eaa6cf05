# SPDX-License-Identifier: Apache-2.0
"""Differences that are identifiers and times which each version generates, for requests that are not sent twice.

Theory of operation
-------------------
A `POST` that creates something answers with its identifier and the time, which always differ between the sides.  Such a
request may not be sent twice to see that.  But identifiers can be recognised over some exchanges:

* a *token* (UUID, ULID, a hash, a random name) has the same form on both sides, is a new one on both sides in every
  exchange, and never comes again;
* a *number* (17, `ORD-00017`, `/orders/17`) goes up with time on both sides, and never comes again;
* a *time* (RFC 3339, or since the epoch) is equally far from the Date of its own response on both sides, within
  `APART`.

Such a difference is called `Change.IDENTIFIER`.  An exchange can also be *unlike* an identifier, which counts against
the whole field: both sides have the same token, it was in the request, or both sides' numbers go down.  A field with
enough such differences and hardly anything unlike is noise (`likely`); every other field differs.

If only one side breaks the rules, it is not a difference of identifiers but stays a difference of the value: a form
that is not production's, a token that came before or is elsewhere in the other side's response, a number that does not
go up.

NOTE: two tokens that are swapped, and a number that counts things (`total`, one more after each request) and is wrong
by the same amount each time, cannot be told from identifiers.  So reports list what was taken for one.
"""

from __future__ import annotations

import datetime
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from tapmirror.compare import elements
from tapmirror.compare.bodies import TooLongError, UndecodableError, decoded, is_xml
from tapmirror.compare.documents import at, document
from tapmirror.compare.findings import Change, Difference
from tapmirror.compare.heads import fields
from tapmirror.exchange import Asked, Response

ENOUGH: Final = 20
"""How many differences of identifiers a field needs to be taken for one."""
UNLIKE: Final = 20
"""How many times as many differences of identifiers there must be as exchanges that are unlike one."""
TRACKS: Final = 512
"""Most fields that one worker watches: each takes 12 KB.  In further fields all differences count."""
SLOTS: Final = 512
"""Most tokens that are remembered of each side of a field; newer ones replace older ones."""
BEFORE: Final = 32
"""Most numbers that are remembered of each side: the last ones."""
STEP: Final = 125_000_000
"""Least nanoseconds between two numbers that are remembered of one side."""
CERTAIN: Final = 1_000_000_000
"""If two responses are this many nanoseconds apart, the later one must have the higher number.  Requests at the same
time are answered in any order, and responses come here in the order of the slower side."""
APART: Final = 3.0
"""Seconds by which a time's distance from its response's Date, which has whole seconds, may differ between the
sides."""
FAR: Final = 400 * 86400.0
"""Seconds from the Date within which a number is taken for a time: things expire within a year."""
LONG: Final = 8
"""Least characters of a token that is searched for in requests and responses: shorter ones are there by chance."""

_UUID: Final = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_TOKEN: Final = re.compile(
    rf"(?:(?P<uuid>{_UUID})|(?P<hex>(?=[a-f]*[0-9])[0-9a-f]{{12,128}})|(?P<ulid>[0-7][0-9A-HJKMNP-TV-Z]{{25}})"
    r"|(?P<name>(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[0-9A-Za-z_.+=-]{10,2000})|(?P<word>[0-9A-Za-z_.+=-]{10,2000}))"
)
_BASE64: Final = re.compile(r"(?=[^+/=]*[+/=])(?!/(?![^=+]*[=+]))(?![^/]{0,20}://)[0-9A-Za-z+/]{16,2000}={0,2}")
"""A token of base64, with one of the characters that other tokens do not have; a path is not one."""
_NO_PATH: Final = re.compile(r"[\s?#]")
_HASH: Final = re.compile(r"(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,128}")
_HEX: Final = re.compile(r"[0-9a-f]+")
_INNER: Final = re.compile(r"(?<=.)(?:\[\]|\.)")
_WORD: Final = re.compile(r"[0-9A-Za-z_.+=-]{10,2000}")
_PREFIX: Final = re.compile(r"(?:[A-Za-z]{2,12}[_-])?")
_NUMBERED: Final = re.compile(r"(?P<before>(?:[A-Za-z]{1,12}[_-]?)?)(?P<number>[0-9]{1,18})")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]{0,10}(?:Z|[+-]\d\d:?\d\d)?")
_UNITS: Final = (1.0, 1e3, 1e6, 1e9)


class Form(NamedTuple):
    """What a value looks like, and what is new in it."""

    kind: str
    value: Any


class _Track:
    """One field of one endpoint."""

    __slots__ = ("count", "lengths", "numbers", "prefix", "same", "seen", "token")

    def __init__(self, *, token: bool) -> None:
        self.token = token
        self.seen = [array("Q", bytes(8 * SLOTS)) for _ in range(2)]
        self.numbers: list[deque[tuple[int, int]]] = [deque(maxlen=BEFORE) for _ in range(2)]
        """For each side, its last numbers, as (nanoseconds, number)."""
        self.count = 0
        self.lengths = (1 << 20, 0)
        """The least and the most of production's tokens."""
        self.prefix = ""
        self.same = 0
        """How many of production's last tokens in a row begin like this: a seeming prefix may be there by chance."""

    def alike(self, one: str, other: str) -> bool:
        """Whether the shadow's token is of the form of production's, as far as that is known yet."""
        mine, its = _prefix(one), _prefix(other)
        self.same = self.same + 1 if mine == self.prefix else 0
        self.prefix = mine
        low, high = self.lengths
        self.lengths = min(low, len(one)), max(high, len(one))
        self.count += 1
        if self.count <= ENOUGH:
            return True
        return self.lengths[0] <= len(other) <= self.lengths[1] and (not mine or mine == its or self.same < ENOUGH)

    def again(self, side: int, value: Any, at: int) -> bool:
        """Whether the side gave this token before, or a number that does not go up with time (`at`, in nanoseconds).

        The value is remembered.
        """
        name = int.from_bytes(blake2b(str(value).encode("utf-8", "replace"), digest_size=8).digest()) or 1
        seen = self.seen[side]
        slot = name % SLOTS
        found = seen[slot] == name
        seen[slot] = name
        return found if self.token else self._falls(side, value, at) or found

    def _falls(self, side: int, value: int, at: int) -> bool:
        """Whether it is on the wrong side of the oldest number that is remembered, if that is far enough in time."""
        numbers = self.numbers[side]
        when, number = numbers[0] if numbers else (at, value)
        if not numbers or abs(at - numbers[-1][0]) >= STEP:
            numbers.append((at, value))
        return abs(at - when) >= CERTAIN and (value - number) * (at - when) <= 0


class Sorted(NamedTuple):
    """The differences of an exchange, after those of identifiers were found."""

    found: list[Difference]
    unlike: list[str]
    """Names of identifiers' differences that this exchange makes less likely to be such."""


class Identifiers:
    """The fields of one shadow that are watched."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, str, bool], _Track] = {}
        self._tokens: dict[str, list[str]] = {}

    def sort(self, endpoint: str, asked: Asked, one: Response, other: Response, found: list[Difference]) -> Sorted:
        """Change differences that look like two identifiers to `Change.IDENTIFIER`.

        For exchanges whose request may not be sent twice.  `one` is production's response, `other` the shadow's.
        """
        sorted_: list[Difference] = []
        unlike: list[str] = []
        texts: tuple[bytes, bytes] | None = None
        for each in found:
            known = (endpoint, each.path, True) in self._tracks
            may_be = each.change is Change.VALUE and each.path != "status"
            forms = _forms(each, one, other, known=known) if may_be else None
            if forms is None:
                sorted_.append(each)
                continue
            mine, its = forms
            is_one = _alike(mine.kind, its.kind)
            if is_one and mine.kind != "time":
                new = not (mine.kind.startswith("word") and its.kind.startswith("word"))
                token = not mine.kind.startswith("number")
                if token and new and (endpoint, each.path, token) not in self._tracks:
                    new = bool(_standing([each.path], one))
                track = self._track(endpoint, each.path, new=new, token=token)
                if track is None:
                    sorted_.append(each)
                    continue
                again, its_again = track.again(0, mine.value, one.last_ns), track.again(1, its.value, other.last_ns)
                is_one = again == its_again and (not track.token or track.alike(mine.value, its.value))
                if is_one and again:
                    unlike.append(each.path)
                    is_one = track.token  # asked for again; or it is none, and that will show
                if is_one and track.token and len(mine.value) >= LONG:
                    if texts is None:
                        texts = _plain(one), _plain(other)
                    if _within(mine.value, asked.head, asked.body, texts[1]):
                        unlike.append(each.path)
                        is_one = False
                    elif _within(its.value, asked.head, asked.body, texts[0]):
                        is_one = False
            sorted_.append(Difference(Change.IDENTIFIER, each.path, each.one, each.other) if is_one else each)
        tokens = self._tokens.get(endpoint)
        if tokens and one.status == other.status:
            unlike += _equal(tokens, {each.path for each in found}, one)
        return Sorted(sorted_, [f"{Change.IDENTIFIER.value} {path}" for path in dict.fromkeys(unlike)])

    def _track(self, endpoint: str, path: str, *, new: bool, token: bool) -> _Track | None:
        track = self._tracks.get((endpoint, path, token))
        if track is None and new and len(self._tracks) < TRACKS:
            track = self._tracks[endpoint, path, token] = _Track(token=token)
            if token:
                self._tokens.setdefault(endpoint, []).append(path)
        return track


def likely(count: int, unlike: int) -> bool:
    """Whether a field is an identifier: it differed `count` times as one, and `unlike` exchanges speak against it."""
    return count >= ENOUGH and UNLIKE * unlike <= count


def _equal(tokens: list[str], differing: set[str], one: Response) -> list[str]:
    """The tokens that are present and do not differ: two sides never generate the same identifier.

    Null and empty values, and values inside something that differs as a whole, do not count.
    """
    rest = [path for path in tokens if path not in differing and not any(map(differing.__contains__, _above(path)))]
    return _standing(rest, one) if rest else []


def _standing(paths: list[str], response: Response) -> list[str]:
    """The paths at which a response has a token, among header fields, members of JSON and elements of XML.

    Elsewhere it could not be seen that both sides have the same token, so nothing there is taken for an identifier.
    """
    names = fields(response.head)
    read = _reader(_plain_body(response), names.get(b"content-type", b""))
    return [
        path
        for path in paths
        if (
            path.removeprefix("header.").partition("[")[0].encode() in names
            if path.startswith("header.")
            else any(map(_is_token, read(path)))
        )
    ]


def _reader(body: bytes, type_: bytes) -> Callable[[str], Iterable[Any]]:
    """A function that returns the values of a body at a path, for JSON and XML."""
    if is_xml(type_):
        tree = elements.document(body, type_)
        return lambda path: () if tree is None else elements.at(tree.root, path)
    found = document(body, type_)
    return lambda path: () if found is None else at(found[0], path)


def _above(path: str) -> list[str]:
    """The paths of everything that contains a field."""
    return [path[: found.start()] for found in _INNER.finditer(path)]


def _is_token(value: Any) -> bool:
    text = _text(value)
    return text is not None and form(text) is not None


def _forms(each: Difference, one: Response, other: Response, *, known: bool) -> tuple[Form, Form] | None:
    """What both values look like, if they look like identifiers; `known`: the field is one of tokens."""
    first, second = _text(each.one), _text(each.other)
    if first is None or second is None:
        return None
    in_time = _in_time(first, second, one, other)
    if in_time is not None:
        return (Form("time", 0), Form("time", 0)) if in_time else None
    mine, its = form(first), form(second)
    if mine is None or its is None or mine.kind == its.kind:
        return None if mine is None or its is None else (mine, its)
    return _by_chance(mine, its, first, second, known) or _by_chance(its, mine, first, second, known) or (mine, its)


def _by_chance(mine: Form, its: Form, first: str, second: str, known: bool) -> tuple[Form, Form] | None:
    """Both forms, corrected if one of two tokens looks like another form by chance.

    That may be a hash without letters, or a random name with digits at its end only, or with none.  Both may look so if
    the field is `known` to have tokens.
    """
    before, _, one = first.rpartition("/")
    its_before, _, other = second.rpartition("/")
    if before != its_before:
        return None
    kind = mine.kind.partition(" ")[0]
    if (kind == "hex" and len(one) == len(other) and _HEX.fullmatch(one) and _HEX.fullmatch(other)) or (
        (kind == "name" or known)
        and its.kind.startswith(("word", "number "))
        and _WORD.fullmatch(one)
        and _WORD.fullmatch(other)
    ):
        kind = mine.kind if kind in ("hex", "name") else "name"
        return Form(kind, one), Form(kind, other)
    return None


def _text(value: Any) -> str | None:
    if type(value) is str:
        return value
    if type(value) is bytes:
        return value.decode("latin-1")
    return str(value) if type(value) in (int, float) else None


@lru_cache(1024)
def form(text: str) -> Form | None:
    """What a value looks like."""
    if len(text) > 2400:
        return None
    if _BASE64.fullmatch(text):
        return Form("base64", text)
    path, slash, last = text.rpartition("/")
    path += slash
    if _NO_PATH.search(path):
        return None
    found = None if _HASH.fullmatch(last) else _NUMBERED.fullmatch(last)
    if found is not None:
        return Form(f"number {path}{found['before']}".rstrip(), int(found["number"]))
    found = _TOKEN.fullmatch(last)
    if found is None:
        return None
    kind = found.lastgroup or ""
    value = found[kind]
    kind += f" {len(value)}" if kind == "hex" else ""
    return Form(f"{kind} {path}".rstrip(), value)


def _alike(one: str, other: str) -> bool:
    """Whether two forms are of the same kind: of random names some have no digit."""
    return one.replace("word", "name") == other.replace("word", "name")


def _prefix(token: str) -> str:
    found = _PREFIX.match(token)
    return "" if found is None else found[0]


def _in_time(first: str, second: str, one: Response, other: Response) -> bool | None:
    """Whether both are times as far from the Dates of their responses; None: neither looks like one."""
    date, its_date = _date(one.head), _date(other.head)
    if date is None or its_date is None:
        return None
    found = None
    for unit in _UNITS:
        mine, its = _seconds(first, unit), _seconds(second, unit)
        far = None if mine is None else mine - date
        its_far = None if its is None else its - its_date
        if any(each is not None and abs(each) <= FAR for each in (far, its_far)):
            found = far is not None and its_far is not None and abs(far - its_far) <= APART
            if found:
                break
    return found


def _seconds(text: str, unit: float) -> float | None:
    """Seconds since the epoch."""
    try:
        if _TIME.fullmatch(text):
            time = datetime.datetime.fromisoformat(text)
            return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
        return float(text) / unit if 10 <= len(text) <= 24 and text[:1].isdigit() else None
    except (ValueError, OverflowError):
        return None


def _date(head: bytes) -> float | None:
    return _moment(fields(head).get(b"date", b""))


@lru_cache(64)
def _moment(date: bytes) -> float | None:
    try:
        when = parsedate_to_datetime(date.decode("latin-1"))
        return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _within(value: str, *texts: bytes) -> bool:
    wanted = value.encode("utf-8", "replace")
    return any(wanted in text for text in texts)


def _plain(response: Response) -> bytes:
    """The head of a response, and its body without codings."""
    return response.head + _plain_body(response)


def _plain_body(response: Response) -> bytes:
    """The body of a response without codings; empty if it is too long or broken."""
    coding = fields(response.head).get(b"content-encoding", b"")
    try:
        return decoded(response.body, coding, 1 << 20) if coding else response.body
    except (TooLongError, UndecodableError):
        return b""
