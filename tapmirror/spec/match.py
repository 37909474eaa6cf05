# SPDX-License-Identifier: Apache-2.0
"""What a request must be to match: conditions on its parts, all of which must hold."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from tapmirror.spec.errors import Checked, Found, shown

TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
"""A field name or method (RFC 9110, 5.6.2)."""


class Text(Checked, frozen=True, kw_only=True):
    """A condition on a text: exactly one of the first five.  Regular expressions use RE2 syntax and match the
    whole text.
    """

    exact: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    regex: str | None = None
    present: bool | None = None
    """True: it is present, with any value; false: it is absent."""
    ignore_case: bool = False
    invert: bool = False
    """Invert the condition."""

    def _check(self) -> Found:
        given = [name for name in ("exact", "prefix", "suffix", "regex", "present") if getattr(self, name) is not None]
        if len(given) != 1:
            yield (
                "",
                "needs one of exact, prefix, suffix, regex, present"
                + (f", not {' and '.join(given)}" if given else ""),
            )
        if self.regex is not None:
            wrong = regex_error(self.regex)
            if wrong:
                yield "regex", wrong


class Size(Checked, frozen=True, kw_only=True):
    """A range of body sizes in bytes, as Content-Length gives them; a chunked body is in no range."""

    min: int = 0
    max: int | None = None

    def _check(self) -> Found:
        if self.min < 0:
            yield "min", f"{self.min} is below 0"
        if self.max is not None and self.max < self.min:
            yield "max", f"{self.max} is below min"


class Match(Checked, frozen=True, kw_only=True):
    """Conditions on a request.  All that are given must hold."""

    methods: tuple[str, ...] = ()
    """The method is one of these."""
    host: Text | None = None
    """The Host field without its port, in lower case."""
    path: Text | None = None
    """The path as sent (not decoded), without the query."""
    target: Text | None = None
    """Path and query as sent."""
    headers: dict[str, Text] = {}
    """By name.  The values of several fields with one name are joined by `, `."""
    query: dict[str, Text] = {}
    """By name, decoded.  Of several parameters with one name, the first counts."""
    cookies: dict[str, Text] = {}
    """By name.  Of several cookies with one name, the first counts."""
    clients: tuple[str, ...] = ()
    """The client's address is in one of these networks."""
    body: Size | None = None

    def _check(self) -> Found:
        for i, method in enumerate(self.methods):
            if not TOKEN.fullmatch(method):
                yield f"methods[{i}]", f"{shown(method)} is not a method"
        for name in self.headers:
            if not TOKEN.fullmatch(name):
                yield f"headers.{name}", f"{shown(name)} is not a field name"
        yield from network_problems("clients", self.clients)


def network_problems(field: str, networks: tuple[str, ...]) -> Found:
    """Those of the texts that are not networks (address, or address/length)."""
    for i, text in enumerate(networks):
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            yield f"{field}[{i}]", f"{error}"


def regex_error(text: str) -> str | None:
    """What is wrong with a regular expression of RE2."""
    import re2  # takes 8 ms and 2 MB: only who uses expressions pays

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0]
        return f"{shown(text)}: {reason.decode() if isinstance(reason, bytes) else reason}"
    return None
