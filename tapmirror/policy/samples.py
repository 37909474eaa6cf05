# SPDX-License-Identifier: Apache-2.0
"""What is taken out of the samples that a comparison keeps: of requests, and of both answers.

The tap's own rules hold, and those of `compare.redact` beside them; without these the fields and members that
usually hold secrets or persons go, as with `privacy: strict`, but texts are shown.  As in `redact`: what cannot be
looked into is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tapmirror.policy.redact import STRICT_HEADERS, STRICT_NAMES, Redactor
from tapmirror.policy.request import Request
from tapmirror.spec import Redact

USUAL: Final = Redact(
    headers={**STRICT_HEADERS, "set-cookie": "remove"},
    query=dict.fromkeys(STRICT_NAMES, "remove"),
    json={f"**.{name}": "replace:(redacted)" for name in STRICT_NAMES},
)
_REQUEST: Final = b"GET / HTTP/1.1\r\n"
"""In place of the status line, for rules of fields know requests only."""

_LINKS: Final = (b"location", b"content-location", b"link", b"refresh")
"""Fields of answers that hold URLs."""
_QUERY: Final = re.compile(rb"([?#])([^?#<>\"]*)")


class SampleRedactor:
    """`compare.Redaction`.  `secret` is the key of the hashes."""

    def __init__(self, rules: Sequence[Redact], secret: bytes) -> None:
        self._redactors = [Redactor(each, secret) for each in rules]

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A request's head and body; no body: it cannot be looked into.  Any bytes may come."""
        end = head.find(b"\r")
        if head[:end].count(b" ") != 2 or not head.endswith(b"\r\n\r\n"):
            return _REQUEST + b"\r\n", None
        shown: bytes | None = body
        for redactor in self._redactors:
            request = Request(head, b"")
            shown = _body(redactor, request, shown)
            head = redactor.head(request)
        return head, shown

    def answer(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """An answer's head, and its body (decoded)."""
        lines = head.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        kept = [
            self._link(line.replace(b"\r", b" "))
            for line in lines[1:]
            if b":" in line and not line.lower().startswith(b"content-encoding:")
        ]
        fields, shown = self.request(b"\r\n".join([_REQUEST[:-2], *kept, b"", b""]), body)
        return lines[0] + b"\r\n" + fields.partition(b"\r\n")[2], shown

    def _link(self, line: bytes) -> bytes:
        """A field of an answer; the URLs in it lose what the rules take out of a query, of their fragments too."""
        name, _, value = line.partition(b":")
        return name + b":" + _QUERY.sub(self._query, value) if name.strip().lower() in _LINKS else line

    def _query(self, found: re.Match[bytes]) -> bytes:
        head, _ = self.request(b"GET /?%b HTTP/1.1\r\n\r\n" % found[2].replace(b" ", b"%20"), b"")
        kept = head.partition(b" HTTP/")[0].partition(b"?")[2]
        return found[1] + kept if kept else b""


def _body(redactor: Redactor, request: Request, body: bytes | None) -> bytes | None:
    if not body or not redactor.reads_bodies:
        return body
    try:
        return redactor.body(request, body) if len(body) <= redactor.body_bytes else None
    except OverflowError:  # an integer that can be read and not written
        return None
