# SPDX-License-Identifier: Apache-2.0
"""What two texts differ in: line by line.

HTML is its text: without tags, comments, scripts and styles, white space as one space.  Lines that differ in digits and
long tokens only are a field of their own, named by a hash of the rest of the line: so a line with the time of day,
which differs always, hides no other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from tapmirror.compare.findings import Change, Findings

LINES: Final = 2000
"""Of a text that are compared one by one; the others as a whole."""

_TAG: Final = re.compile(r"<[^<>]*>")
_BLOCK: Final = re.compile(
    r"</?(?=[abdhlopstu])"  # or each `<` of a page of them is tried against every name
    r"(?:p|div|br|li|ul|ol|tr|td|th|table|h[1-6]|section|article|title|body|head|option|hr)\b[^<>]*>",
    re.IGNORECASE,
)
_ENTITY: Final = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#39|#x27);")
_ENTITIES: Final = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " ", "&#39;": "'", "&#x27;": "'"}
_VARIABLE: Final = re.compile(r"[0-9A-Za-z+/_=-]{20,}|[0-9a-fA-F-]{8,}|\d+")


def differ(findings: Findings, one: str, other: str) -> None:
    """Two texts that come from different bytes."""
    if one == other and "\ufffd" in one:  # what is no text is the same in both
        findings.add(Change.VALUE, "body.lines", one, other)
    else:
        _lines(findings, one.splitlines(), other.splitlines())


def pages_differ(findings: Findings, one: str, other: str) -> None:
    """Find what two pages of HTML differ in."""
    _lines(findings, [*html_lines(one)], [*html_lines(other)])


def _lines(findings: Findings, one: list[str], other: list[str]) -> None:
    if one[LINES:] != other[LINES:]:
        findings.add(Change.VALUE, "body.lines", "\n".join(one[LINES:][:20]), "\n".join(other[LINES:][:20]))
    one, other = one[:LINES], other[:LINES]
    if len(one) != len(other):
        mine, its = Counter(one), Counter(other)
        gone, new = list((mine - its).elements()), list((its - mine).elements())
        if gone:
            findings.add(Change.MISSING, "body.lines", "\n".join(gone[:20]), None)
        if new:
            findings.add(Change.EXTRA, "body.lines", None, "\n".join(new[:20]))
        return
    seen = set()
    for mine_, its_ in zip(one, other, strict=True):
        if mine_ != its_ and not findings.rules.same_text(mine_, its_):
            name = _VARIABLE.sub("#", mine_[:400])
            path = "body.lines"
            if name == _VARIABLE.sub("#", its_[:400]):
                path = f"body.lines[{_line_name(name)}]"
            if path not in seen:
                seen.add(path)
                findings.add(Change.VALUE, path, mine_, its_)


def html_lines(text: str) -> Iterator[str]:
    """What of HTML is text: a line for each block, white space as one space, no empty ones."""
    text = _BLOCK.sub("\n", _without(text))
    text = _TAG.sub("", text)
    text = _ENTITY.sub(lambda found: _ENTITIES[found[0]], text)
    for line in text.split("\n"):
        line = " ".join(line.split())
        if line:
            yield line


def _line_name(line: str) -> str:
    """Of a line without its numbers: a hash, for names are shown and its text may be a secret."""
    return blake2b(" ".join(line.split()).encode("utf-8", "replace"), digest_size=4).hexdigest()


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
