# SPDX-License-Identifier: Apache-2.0
"""What is taken out of the samples that a comparison keeps: of requests, and of both answers.

The tap's own rules hold, and those of `compare.redact` beside them; without these the fields and members that
usually hold secrets or persons go, as with `privacy: strict`, but texts are shown.  As in `redact`: what cannot be
looked into is not shown.
"""

from __future__ import annotations

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


class SampleRedactor:
    """`compare.Redaction`.  `secret` is the key of the hashes."""

    def __init__(self, rules: Sequence[Redact], secret: bytes) -> None:
        self._redactors = [Redactor(each, secret) for each in rules]

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A request's head and body; no body: it cannot be looked into."""
        shown: bytes | None = body
        for redactor in self._redactors:
            request = Request(head, b"")
            shown = _body(redactor, request, shown)
            head = redactor.head(request)
        return head, shown

    def answer(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """An answer's head, and its body (decoded)."""
        lines = head.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        kept = [line for line in lines[1:] if b":" in line and not line.lower().startswith(b"content-encoding:")]
        fields, shown = self.request(b"\r\n".join([_REQUEST[:-2], *kept, b"", b""]), body)
        return lines[0] + b"\r\n" + fields.partition(b"\r\n")[2], shown


def _body(redactor: Redactor, request: Request, body: bytes | None) -> bytes | None:
    if not body or not redactor.reads_bodies:
        return body
    return redactor.body(request, body) if len(body) <= redactor.body_bytes else None
