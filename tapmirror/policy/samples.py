# SPDX-License-Identifier: Apache-2.0
"""What is taken out of the samples that comparison keeps: requests as they are redacted, and answers in the same way.

An answer's cookies are credentials: their values are never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tapmirror.policy.redact import Redactor
from tapmirror.policy.request import Request

_LINE: Final = b"GET / HTTP/1.1"
"""In the place of an answer's status line: fields are read and redacted as a request's are."""
_NO_KEY: Final = bytes(40)
HIDDEN: Final = b"(redacted)"


class SampleRedactor:
    """Several redactions one after the other."""

    def __init__(self, redactors: Sequence[Redactor]) -> None:
        self._redactors = list(redactors)

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """A request's head and body; None: it cannot be looked into."""
        left: bytes | None = body
        for redactor in self._redactors:
            request = Request(head, _NO_KEY)
            left = None if left is None else redactor.body(request, left)
            head = redactor.head(request)
        return head, left

    def answer(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        """An answer's head and its decoded body; None: it cannot be looked into."""
        status, _, rest = head.partition(b"\r\n")
        lines = []
        for line in rest[:-2].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"set-cookie":
                line = b"%b: %b=%b" % (name, value.strip(b" \t").partition(b"=")[0], HIDDEN)
            if name.lower() != b"content-encoding":
                lines.append(line)
        head, left = self.request(b"\r\n".join((_LINE, *filter(None, lines), b"", b"")), body)
        return head.replace(_LINE, status, 1), left
