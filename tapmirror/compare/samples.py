# SPDX-License-Identifier: Apache-2.0
"""One exchange for people: the request as a command line, both responses, and the field's values; redacted and cut.

Redaction comes before everything else: the values are taken from the redacted responses.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, Protocol

import msgspec

from tapmirror.compare.bodies import TooLongError, UndecodableError, decoded
from tapmirror.compare.diff import compare
from tapmirror.compare.findings import Change, Difference
from tapmirror.compare.heads import fields
from tapmirror.compare.rules import Rules
from tapmirror.compare.summary import Sample
from tapmirror.exchange import Asked, Response

EXCERPT: Final = 1500
"""Most characters of a response's body."""
VALUE: Final = 200
"""Most characters of a value."""
CURL: Final = 4000
"""Most characters of a curl line; a body or a target that does not fit is left out."""
ROOM: Final = 500
"""Characters of a curl line for everything but fields, body and target, such as the host, which may be a long name."""
METHOD: Final = 100
"""Most characters of the method in a curl line."""
HIDDEN: Final = "(redacted)"
CODING: Final = " header.content-encoding"
"""The end of the name of a difference in Content-Encoding; responses are compared and shown decoded."""
WHOLE: Final = "value body"
"""The name of a difference of whole bodies: bodies that cannot be inspected are not shown, only their length is."""
_IDENTIFIER: Final = f"{Change.IDENTIFIER.value} "
_VALUE: Final = f"{Change.VALUE.value} "
_UNPRINTABLE: Final = re.compile(rb"[^\t\n\r -~]")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:=@%+,-]+")
_OWN: Final = (b"host", b"content-length", b"connection", b"transfer-encoding", b"expect")
"""Fields that curl sets itself."""
_GLOBS: Final = re.compile(rb"[][{}]")
"""Characters that curl takes for a pattern of several URLs without --globoff (curl(1))."""
_REWRITTEN: Final = re.compile(rb"\A[^/]|#|/(?:\.|%2[eE]){1,2}(?:[/?]|\Z)|[^!-~]")
"""Targets that curl changes: it resolves `/../`, encodes characters, removes fragments, and does not know `*`."""


class Redaction(Protocol):
    """Removes what must not be shown.  None: it cannot be inspected, and is not shown at all."""

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A request's head and body."""

    def response(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A response's head and (decoded) body."""

    def path(self, path: bytes) -> bytes:
        """A request's path."""

    def field(self, path: str) -> str:
        """The path of a difference: names of members and of fields are bytes of the network too."""


def sample(
    asked: Asked,
    one: Response,
    other: Response,
    names: list[str],
    rules: Rules,
    redaction: Redaction,
    base: str,
    at: float,
) -> dict[str, Sample]:
    """Samples of an exchange for the fields of these names.  `base` is the shadow's address as a URL."""
    mine, its = _redacted(one, rules, redaction), _redacted(other, rules, redaction)
    found = {each.field: each for each in compare(mine, its, rules, bodiless=asked.method == b"HEAD").found}
    line = curl(asked, redaction, base)
    texts = _shown(mine), _shown(its)
    samples = {}
    for name in names:
        difference = found.get(name) or found.get(name.replace(_IDENTIFIER, _VALUE, 1))
        values = (HIDDEN, HIDDEN)
        if difference is not None:
            values = _values(difference)
        elif name == WHOLE:
            values = (_size(one), _size(other))
        elif name.endswith(CODING):
            values = (_coding(one, redaction), _coding(other, redaction))
        samples[name] = Sample(at, line, *texts, *values)
    return samples


def _size(response: Response) -> str:
    return f"(not shown, {response.length:,} bytes)"


def _coding(response: Response, redaction: Redaction) -> str:
    """The Content-Encoding of the body, which is shown decoded."""
    found = fields(response.head).get(b"content-encoding")
    return _value(None if found is None else redaction.path(found))


def curl(asked: Asked, redaction: Redaction, base: str) -> str:
    """The request as a line for a POSIX shell."""
    head, body = redaction.request(asked.head, b"" if asked.longer else asked.body)
    first, *lines = head[:-4].split(b"\r\n")
    method, _, rest = first.partition(b" ")
    target = rest.rpartition(b" ")[0]
    if b"://" in target and not target.startswith(b"/"):
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    start = ["curl", "-i"]
    if method == b"HEAD":
        start.append("-I")
        body = b""  # it means nothing there (RFC 9110, 9.3.2), and curl takes no -I with one
    elif method != b"GET" or body != b"" or asked.longer:
        start += ["-X", _quoted(method) if len(_quoted(method)) <= METHOD else "'(too long)'"]
    given = []
    if body and b"content-type:" not in head.lower():
        given.append("-H Content-Type:")  # or curl adds one
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"accept-encoding" and "--compressed" not in start:  # or its output were unreadable
            start.append("--compressed")
        if name.lower() == b"host" or name.lower() not in _OWN:
            value = value.strip()
            given.append("-H " + _quoted(name + b": " + value if value else name + b";"))  # so curl knows one without
    # raw: of what begins with @ curl would send the file of that name, and any client could ask for one
    asking: list[str] = []
    if asked.longer and method != b"HEAD":
        asking += ["--data-raw", "'(too long)'"]
    elif body is None or b"\0" in body:  # no word of a shell can hold that
        asking += ["--data-raw", "'(not shown)'"]
    elif body:
        text = _quoted(body)
        asking += ["--data-raw", text if len(text) < CURL // 2 else "'(too long)'"]
    asking += _target(target, base, CURL // 2 - ROOM if body else CURL - ROOM)
    return " ".join([*start, *_fitting(given, CURL - len(" ".join(start + asking)) - 1), *asking])


def _target(target: bytes, base: str, most: int) -> list[str]:
    """The last words of the line: the target as it came, in at most `most` characters, so that no word is cut."""
    if len(_quoted(target)) > most:
        return [_quoted(f"{base}/(too long)".encode())]
    if _REWRITTEN.search(target):
        return ["--request-target", _quoted(target), _quoted(f"{base}/".encode())]
    url = _quoted(base.encode() + target)
    return ["--globoff", url] if _GLOBS.search(target) else [url]


def _fitting(given: list[str], room: int) -> list[str]:
    """The fields, without the longest ones if there is no room: a line that is cut would be no command."""
    over = sum(map(len, given)) + len(given) - room
    gone = set()
    for at in sorted(range(len(given)), key=lambda at: -len(given[at])):
        if over <= 0:
            break
        gone.add(at)
        over -= len(given[at]) + 1
    return [field for at, field in enumerate(given) if at not in gone]


def _quoted(text: bytes) -> str:
    """Quote a text as one word for a shell, which acts on nothing in it (POSIX 2024, 2.2.4 for unprintable bytes)."""
    if _UNPRINTABLE.search(text) or b"\n" in text or b"\r" in text or b"\t" in text:
        inner = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in text)
        return f"$'{inner}'"
    shown = text.decode("ascii")
    return shown if _PLAIN.fullmatch(shown) else "'" + shown.replace("'", "'\\''") + "'"


def _redacted(response: Response, rules: Rules, redaction: Redaction) -> Response:
    """The response decoded, without what must not be shown; its body is empty if it cannot be inspected."""
    if not response.head:
        return response
    body: bytes | None = response.body
    head = response.head
    coding = fields(head).get(b"content-encoding", b"")
    if coding:
        try:
            body = decoded(response.body, coding, rules.decoded_bytes)
        except (TooLongError, UndecodableError):
            body = None
    elif len(response.body) < response.length:
        body = None
    head, shown = redaction.response(head, body or b"")
    if body is None:
        shown = None
    kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-encoding:")]
    return msgspec.structs.replace(
        response,
        head=b"\r\n".join(kept),
        body=shown or b"",
        length=len(shown or b""),
        digest=b"",
        whole=shown is not None or not response.length,
    )


def _shown(response: Response) -> str:
    if response.failure is not None:
        return f"(no response: {response.failure.value})"
    head = response.head.decode("latin-1").replace("\r\n", "\n").strip()
    body = response.body[: 4 * EXCERPT].decode("utf-8", "replace")
    if not response.whole:
        body = "(body not shown)"
    if len(body) > EXCERPT:
        body = body[:EXCERPT] + "…"
    return _printable(f"{head[:EXCERPT]}\n\n{body}".strip())


def _values(found: Difference) -> tuple[str, str]:
    """Both values.  If their types differ, as JSON: otherwise 1 and "1" would look alike, and null like no value."""
    change, one, other = found.change, found.one, found.other
    if change is Change.LENGTH:  # what there is more of is beyond what is shown of a long one
        return _measured(one), _measured(other)
    types = change is Change.TYPE
    return (
        _value(one, json=types or (change is Change.MISSING and one is None)),
        _value(other, json=types or (change is Change.EXTRA and other is None)),
    )


def _measured(array: list[Any]) -> str:
    return f"{len(array)} element{'' if len(array) == 1 else 's'}: {_value(array)}"


def _value(value: Any, *, json: bool = False) -> str:
    if isinstance(value, bytes):
        text = value[: 4 * VALUE].decode("utf-8", "replace")
    elif isinstance(value, str) and not json:
        text = value
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)  # of JSON that is none: it were null
    elif value is None and not json:
        text = "(nothing)"
    else:
        try:
            text = msgspec.json.encode(value).decode()
        except (RecursionError, msgspec.MsgspecError, ValueError, OverflowError):
            text = "(too deep)"
    text = _printable(text)
    return text if len(text) <= VALUE else text[:VALUE] + "…"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
