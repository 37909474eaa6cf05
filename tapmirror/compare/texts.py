# SPDX-License-Identifier: Apache-2.0
"""What two texts differ in: line by line.

Lines that differ only in digits and long tokens are a separate field, named by a hash of the rest of the line.  So a
line with the time of day, which always differs, does not hide other lines.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import blake2b
from typing import Final

from tapmirror.compare.findings import Change, Findings

LINES: Final = 2000
"""Most lines of a text that are compared one by one; the others are compared as a whole."""

_VARIABLE: Final = re.compile(r"[0-9A-Za-z+/_=-]{20,}|[0-9a-fA-F-]{8,}|\d+")
IN_REFERENCES: Final = re.compile(
    r"(?<![0-9A-Za-z+_=-])(?=[A-Za-z+_=-]*[0-9])[0-9A-Za-z+_=-]{20,}|[0-9a-fA-F-]{8,}|\d+"
)
"""Digits and long tokens in what may be a reference: a path of many words is not a token.  The expression begins at the
first such character, because long words without a digit would take quadratic time."""


def differ(findings: Findings, one: str, other: str) -> None:
    """Compare two texts that were decoded from different bytes."""
    if one == other and "\ufffd" in one:  # only invalid bytes differ, which are replaced alike
        findings.add(Change.VALUE, "body.lines", one, other)
    else:
        Lines(findings, "body.lines").differ(one.splitlines(), other.splitlines())


class Lines:
    """The comparison of two lists of lines, whose differences are at one path."""

    __slots__ = ("add", "path", "same_text")

    def __init__(self, findings: Findings, path: str) -> None:
        self.add = findings.add
        self.same_text = findings.rules.same_text
        self.path = path

    def differ(self, one: list[str], other: list[str]) -> None:
        """Find what they differ in."""
        path = self.path
        if one[LINES:] != other[LINES:]:
            self.add(Change.VALUE, path, "\n".join(one[LINES:][:20]), "\n".join(other[LINES:][:20]))
        one, other = one[:LINES], other[:LINES]
        if len(one) != len(other):
            mine, its = Counter(one), Counter(other)
            gone, new = list((mine - its).elements()), list((its - mine).elements())
            if gone:
                self.add(Change.MISSING, path, "\n".join(gone[:20]), None)
            if new:
                self.add(Change.EXTRA, path, None, "\n".join(new[:20]))
            return
        seen = set()
        for mine_, its_ in zip(one, other, strict=True):
            if mine_ != its_ and not self.same_text(mine_, its_):
                at = place(path, mine_, its_)
                if at not in seen:
                    seen.add(at)
                    self.add(Change.VALUE, at, mine_, its_)


def place(path: str, one: str, other: str, variable: re.Pattern[str] = _VARIABLE) -> str:
    """The path of a difference of two texts; a separate one if they differ only in what is `variable`."""
    name = variable.sub("#", one[:400])
    return f"{path}[{_line_name(name)}]" if name == variable.sub("#", other[:400]) else path


def _line_name(line: str) -> str:
    """A name for a line without its numbers: a hash, because names are shown and the text may be a secret."""
    return blake2b(" ".join(line.split()).encode("utf-8", "replace"), digest_size=4).hexdigest()
