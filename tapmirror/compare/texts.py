# SPDX-License-Identifier: Apache-2.0
"""What two texts differ in: line by line.

Lines that differ in digits and long tokens only are a field of their own, named by a hash of the rest of the line: so a
line with the time of day, which differs always, hides no other.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import blake2b
from typing import Final

from tapmirror.compare.findings import Change, Findings

LINES: Final = 2000
"""Lines of a text that are compared one by one; the others are compared as a whole."""

_VARIABLE: Final = re.compile(r"[0-9A-Za-z+/_=-]{20,}|[0-9a-fA-F-]{8,}|\d+")
IN_REFERENCES: Final = re.compile(
    r"(?<![0-9A-Za-z+_=-])(?=[A-Za-z+_=-]*[0-9])[0-9A-Za-z+_=-]{20,}|[0-9a-fA-F-]{8,}|\d+"
)
"""Digits and long tokens in what may be a reference to something: a path of many words is no token.  It is looked
for where such characters begin, for long words without a digit would take quadratic time."""


def differ(findings: Findings, one: str, other: str) -> None:
    """Two texts that come from different bytes."""
    if one == other and "\ufffd" in one:  # what is no text is the same in both
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
    """Where two different texts at a path are a field of their own, for they differ in what is `variable` only."""
    name = variable.sub("#", one[:400])
    return f"{path}[{_line_name(name)}]" if name == variable.sub("#", other[:400]) else path


def _line_name(line: str) -> str:
    """Of a line without its numbers: a hash, for names are shown and its text may be a secret."""
    return blake2b(" ".join(line.split()).encode("utf-8", "replace"), digest_size=4).hexdigest()
