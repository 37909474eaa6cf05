# SPDX-License-Identifier: Apache-2.0
"""What is taken out of the samples that a comparison keeps: of requests, of both responses, and of names.

The tap's own rules hold, and those of `compare.redact` in addition.  Without the latter, the fields and members that
usually hold secrets or personal data are removed, as with `privacy: strict`, but texts are shown.  As in `redact`, what
cannot be inspected is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from tapmirror.policy.redact import MARK, STRICT_HEADERS, STRICT_NAMES, Redactor, is_anywhere, steps_of, unchunked
from tapmirror.policy.request import Request
from tapmirror.spec import Redact

USUAL: Final = Redact(
    headers={**STRICT_HEADERS, "set-cookie": "remove"},
    query=dict.fromkeys(STRICT_NAMES, "remove"),
    json={f"**.{name}": "replace:(redacted)" for name in STRICT_NAMES},
)
_REQUEST: Final = b"GET / HTTP/1.1\r\n"
"""In place of the status line, because the rules for fields are made for requests."""

_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_READABLE: Final = re.compile(
    rb"\r\ncontent-type[ \t]*:[ \t]*application/(?:x-www-form-urlencoded|(?:[a-z0-9.+-]+\+)?json)[ \t]*[;\r]",
    re.IGNORECASE,
)
_TYPED: Final = re.compile(rb"\r\ncontent-type[ \t]*:", re.IGNORECASE)
NAMES: Final = 4096
"""Most paths of differences that are remembered."""
_LINKS: Final = (b"location", b"content-location", b"link", b"refresh")
"""Fields of responses that hold URLs."""
_SESSION: Final = re.compile(rb";jsessionid=[^/?#;,<>\" ]*", re.IGNORECASE).sub
"""The session that servlets put into paths of clients without cookies (Jakarta Servlet 6.0, 7.1.3)."""
QUERIES: Final = 32
"""Most queries and fragments in the fields of a response that are inspected; fields with more are left out."""
_QUERY: Final = re.compile(rb"([?#])([^?#<>\"]*)")
_WITHIN: Final = ((), ("[]",), ("[]", "data"))
"""Where a document may be: it may be the body, a line of it, or the data of an event (`compare.documents`)."""
_LEADS: Final = (re.compile(r"\[\](?=[.\[])"), re.compile(r"\[\]\.(?:data|\*)(?=[.\[])", re.IGNORECASE))
LINES: Final = 4096
"""Most lines of events or of JSON that are inspected, in some 10 ms; what has more is not shown."""
_OPENS: Final = (b"{", b"[")
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff")
"""Marks of UTF-16, in which nothing would be found."""


class SampleRedactor:
    """`compare.Redaction`.  `secret` is the key of the hashes."""

    def __init__(self, rules: Sequence[Redact], secret: bytes) -> None:
        self._redactors = [Redactor(_within(each), secret, texts=True, usual=each is USUAL) for each in rules]
        paths = [path for each in self._redactors for path in each.member_paths]
        self._anywhere = {path[1].lower() for path in paths if is_anywhere(path)}
        self._ends = [
            (*lead, *path)
            for path in paths
            if not is_anywhere(path)
            for lead in _WITHIN[: 1 if path[0] == "**" else None]
        ]
        self.field = lru_cache(NAMES)(self._field)
        """`compare.Redaction.field`: the same fields differ again and again."""

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A request's head and body; the body is None if it cannot be inspected.  Any bytes may come.  Only JSON and
        forms can be inspected: what clients send as text or in parts may hold a password anywhere.
        """
        if body and not _READABLE.search(head) and (_TYPED.search(head) or body.lstrip()[:1] not in (b"{", b"[")):
            return self._request(head, b"")[0], None
        if body and _CHUNKED.search(head):
            try:
                body = unchunked(body)
            except ValueError:  # it was not followed to its end
                return self._request(head, b"")[0], None
        return self._request(head, body)

    def path(self, path: bytes) -> bytes:
        """A request's path, or anything else that is only text."""
        for redactor in self._redactors:
            path = redactor.text(path)
        return path

    def _field(self, path: str) -> str:
        """The path of a difference (`body.items[].price`).  It ends at a member that is removed, whatever is within
        that.
        """
        root, _, _ = path.partition(".")
        root = root.partition("[")[0]
        if root == path:
            return path
        steps = list(steps_of(path[len(root) :]))
        if root == "body":
            ends = [(at, rule[-1]) for rule in self._ends if (at := _end(steps, rule))]
            ends += [(at, step) for at, step in enumerate(steps, 1) if step.lower() in self._anywhere]
            if ends:
                at, last = min(ends)
                steps = [*steps[: at - 1], last if last == "*" else steps[at - 1]]
        shown = [step if step == "[]" else self.path(step.encode()).decode("utf-8", "replace") for step in steps]
        return ".".join([root, *shown]).replace(".[]", "[]")

    def _request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        end = head.find(b"\r")
        if head[:end].count(b" ") != 2 or not head.endswith(b"\r\n\r\n"):
            return _REQUEST + b"\r\n", None
        shown: bytes | None = body
        came = Request(head, b"")  # its type tells what the body is, and rules may take that out
        for redactor in self._redactors:
            shown = _body(redactor, came, shown)
            head = redactor.head(Request(head, b""))
        first, *lines = head.split(b"\r\n")
        return b"\r\n".join(
            [_SESSION(b"", first), *map(self.path, lines)]
        ), shown  # of fields that the tap leaves alone, names too

    def response(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A response's head, and its body (decoded)."""
        lines = head.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        kept = []
        queries = QUERIES
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            name = name.strip()  # responses are read leniently, and rules know names without white space
            if not colon or line[:1] in (b" ", b"\t") or name.lower() == b"content-encoding":
                continue
            line = (name + colon + value).replace(b"\r", b" ")
            if name.lower() in _LINKS:
                count = line.count(b"?") + line.count(b"#")
                if count > queries:
                    continue
                queries -= count
                line = self._link(line)
            kept.append(line)
        fields, shown = self._request(b"\r\n".join([_REQUEST[:-2], *kept, b"", b""]), body)
        return lines[0] + b"\r\n" + fields.partition(b"\r\n")[2], shown

    def _link(self, line: bytes) -> bytes:
        """A field of a response.  What the rules remove from a query is removed from the URLs in it, and from their
        fragments too.
        """
        name, _, value = line.partition(b":")
        return name + b":" + _QUERY.sub(self._query, _SESSION(b"", value))

    def _query(self, found: re.Match[bytes]) -> bytes:
        head, _ = self._request(b"GET /?%b HTTP/1.1\r\n\r\n" % found[2].replace(b" ", b"%20"), b"")
        kept = head.partition(b" HTTP/")[0].partition(b"?")[2]
        return found[1] + kept if kept else b""


def _end(steps: Sequence[str], rule: Sequence[str]) -> int:
    """After how many steps of a path a rule first applies; 0: it does not."""
    failed: set[tuple[int, int]] = set()

    def end(at: int, place: int) -> int:
        """The same for the path from `at` on, and the rule from `place` on."""
        if place == len(rule):
            return at
        if (at, place) in failed:
            return 0
        wanted = rule[place]
        if wanted == "**":
            found = next((found for start in range(at, len(steps)) if (found := end(start, place + 1))), 0)
        elif at < len(steps) and _is(steps[at], wanted):
            found = end(at + 1, place + 1)
        else:
            found = 0
        if not found:
            failed.add((at, place))
        return found

    return end(0, 0)


def _is(step: str, wanted: str) -> bool:
    return step == wanted or (wanted == "*" and step != "[]") or step.lower() == wanted.lower()


def _within(spec: Redact) -> Redact:
    """The rules, and in addition those of members of lines and events (`[].a`, `[].data.a`) as they are within each
    line or event.
    """
    json = dict(spec.json)
    for path, action in spec.json.items():
        for lead in _LEADS:
            if found := lead.match(path):
                json.setdefault(path[found.end() :].lstrip("."), action)
    return msgspec.structs.replace(spec, json=json)


def _body(redactor: Redactor, request: Request, body: bytes | None) -> bytes | None:
    if not body or not redactor.reads_bodies:
        return body
    if len(body) > redactor.body_bytes or body.startswith(_WIDE):
        return None
    body = body.removeprefix(MARK)
    try:
        shown = redactor.body(request, body)
        if shown is not None:
            events = request.fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
            return _events(redactor, shown.splitlines()) if events else shown
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) > LINES or not all(line.lstrip()[:1] in _OPENS for line in lines):
            return None
        found = [redactor.body(request, line) for line in lines]  # JSON lines
    except OverflowError:  # an integer that can be read and not written
        return None
    return b"\n".join(line for line in found if line is not None) if None not in found else None


def _events(redactor: Redactor, lines: list[bytes]) -> bytes | None:
    """A stream of events (HTML, 9.2.6): the data of each may be JSON, on several lines."""
    if len(lines) > LINES:
        return None
    shown = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
            continue
        if not line and data:
            shown += [b"data: " + each for each in redactor.data(b"\n".join(data)).split(b"\n")]
            data = []
        shown.append(_line(redactor, line))
    return b"\n".join(shown[:-1])


def _line(redactor: Redactor, line: bytes) -> bytes:
    """A line that is not data: an identifier may be JSON too, and comments and other fields may be anything."""
    if line.lstrip()[:1] in _OPENS:
        return redactor.data(line)
    name, colon, value = line.partition(b":")
    found = redactor.data(value)
    return name + colon + (b" " if value[:1] == b" " and found[:1] != b" " else b"") + found
