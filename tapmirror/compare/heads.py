# SPDX-License-Identifier: Apache-2.0
"""What the header fields of two responses differ in."""

from __future__ import annotations

import re
from typing import Final

from tapmirror.compare.bodies import without_boundary
from tapmirror.compare.findings import Change, Findings
from tapmirror.compare.texts import IN_REFERENCES, place
from tapmirror.compare.words import shortened

_LENGTH: Final = b"content-length"
_CODING: Final = b"content-encoding"
_OF_NAMES: Final = frozenset({b"vary", b"access-control-allow-headers", b"access-control-expose-headers"})
"""Fields whose value is a set of field names (RFC 9110, 5.1 and 12.5.5; Fetch, 3.3.3), in any case."""
_WITH_NAMES: Final = frozenset({b"no-cache", b"private"})
"""Directives of Cache-Control whose argument may be such a set (RFC 9111, 5.2.2)."""
_OR_OPEN: Final = re.compile(rb'("(?:[^"\\]|\\.|\\\Z)*(?:"|\Z))', re.DOTALL)
"""A quoted string, or the rest after a quote that is not closed, so that not each such quote is searched to the end."""
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_WITH_TOKENS: Final = frozenset({b"location", b"content-location", b"link", b"refresh", b"content-security-policy"})
"""Fields with numbers and tokens beside what matters.  If only these differ, that is a separate field: otherwise the
state parameter of a redirect, which is always a new one, would hide that the redirect leads elsewhere."""
_OF_METHODS: Final = frozenset({b"allow", b"access-control-allow-methods"})
"""Fields whose value is a set of methods (RFC 9110, 10.2.1).  Apache's order changes with each start."""


def differ(findings: Findings, one: bytes, other: bytes) -> None:
    """Find what the fields of two heads differ in."""
    ignored = findings.rules.headers
    if not _may_differ(one, other, ignored):
        return
    add, same_text = findings.add, findings.rules.same_text
    first, second = fields(one), fields(other)
    for name in first.keys() | second.keys():
        mine, its = first.get(name), second.get(name)
        if mine == its or name in ignored:
            continue
        if mine is not None and its is not None:
            if name == b"set-cookie":
                mine, its = _cookies(mine), _cookies(its)
            if mine == its or _means(name, mine) == _means(name, its):
                continue
        path = "header." + shortened(name.decode("latin-1"))
        if its is None:
            add(Change.MISSING, path, mine, None)
        elif mine is None:
            add(Change.EXTRA, path, None, its)
        elif not same_text(mine.decode("latin-1"), its.decode("latin-1")):
            if name in _WITH_TOKENS:
                path = place(path, mine.decode("latin-1"), its.decode("latin-1"), IN_REFERENCES)
            add(Change.VALUE, path, mine, its)


def lengths_differ(findings: Findings, one: bytes, other: bytes) -> None:
    """Compare the lengths of bodies that two responses to HEAD leave out.

    Only if both give it, since they need not (RFC 9110, 8.6), and neither is compressed, since compression may differ.
    """
    mine, its = fields(one), fields(other)
    length, its_length = mine.get(_LENGTH), its.get(_LENGTH)
    plain = _CODING not in mine and _CODING not in its
    if findings.rules.lengths and plain and length and its_length and length != its_length:
        findings.add(Change.VALUE, "header.content-length", length, its_length)


def fields(head: bytes) -> dict[bytes, bytes]:
    """The fields of a response's head: values by lower-case name; several of one name are joined by a line break."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            before = found.get(name)
            found[name] = value if before is None else before + b"\n" + value
    return found


def _may_differ(one: bytes, other: bytes, ignored: frozenset[bytes]) -> bool:
    """Whether two heads have different lines that count.  Most heads differ only in Date and identifiers."""
    mine, its = one.split(b"\n"), other.split(b"\n")
    if len(mine) == len(its):  # usually in the same order
        for line, its_line in zip(mine, its, strict=True):
            if line != its_line and (_counts(line, ignored) or _counts(its_line, ignored)):
                break
        else:
            return False
    lines, its_lines = {*mine}, {*its}
    if len(lines) < len(mine) or len(its_lines) < len(its):  # a line may be there twice, and once on the other side
        return True
    return any(_counts(line, ignored) for line in lines ^ its_lines)


def _counts(line: bytes, ignored: frozenset[bytes]) -> bool:
    """Whether a line is of a field that is compared."""
    name, colon, _ = line.partition(b":")
    return bool(colon) and name.strip().lower() not in ignored


def _means(name: bytes, value: bytes) -> object:
    """A value without what has no meaning: the order and lines of a set (RFC 9110, 5.3), the spelling of a type."""
    if name == b"content-type":
        return _type(value)
    if name == b"cache-control":
        return _directives(value)
    if name in _OF_NAMES:
        return _names(value)
    return _members(value) if name in _OF_METHODS else value


def _members(value: bytes) -> frozenset[bytes]:
    return frozenset(_parts(value.replace(b"\n", b","), b","))


def _names(value: bytes) -> frozenset[bytes]:
    return _members(value.lower())


def _directives(value: bytes) -> dict[bytes, tuple[bytes | frozenset[bytes], ...]]:
    """The directives of Cache-Control, in any order, quoted or not.

    Of a directive that is given twice, as by an application and a proxy, the first counts (RFC 9111, 4.2.1).  Case is
    kept in arguments: an extension may depend on it.
    """
    found: dict[bytes, dict[bytes | frozenset[bytes], None]] = {}
    for part in _parts(value.replace(b"\n", b","), b","):
        name, its = _parameter(part)
        means = _names(its.removeprefix(b"=")) if name in _WITH_NAMES else its
        found.setdefault(name, {}).setdefault(means)
    return {name: tuple(given) for name, given in found.items()}


def _type(value: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A media type without white space, boundary, order of parameters and quotes, and without case if it has no
    meaning.

    See RFC 9110, 8.3.1.
    """
    kind, *parts = _parts(without_boundary(value), b";") or [b""]
    parameters = [
        (name, its.lower() if name == b"charset" else its) for name, its in (_parameter(part) for part in parts)
    ]
    return kind.lower(), sorted(parameters, key=lambda parameter: parameter[0])


def _parts(value: bytes, sign: bytes) -> list[bytes]:
    """The non-empty parts between signs that are not inside quotes (RFC 9110, 5.6.4)."""
    found = [[b""]]
    for part in _OR_OPEN.split(value):
        if part[:1] == b'"':
            found[-1].append(part)
        else:
            first, *more = part.split(sign)
            found[-1].append(first)
            found += [[each] for each in more]
    return [part for each in found if (part := b"".join(each).strip())]


def _parameter(part: bytes) -> tuple[bytes, bytes]:
    """The name of a parameter, and its value without quotes."""
    name, sign, value = part.partition(b"=")
    value = value.strip()
    quoted = _QUOTED.fullmatch(value)
    return name.strip().lower(), sign + (value if quoted is None else _ESCAPED.sub(rb"\1", quoted[1]))


def _cookies(value: bytes) -> bytes:
    """Cookies without their values and times, because sessions always differ."""
    kept = []
    for line in value.split(b"\n"):
        name, *attributes = line.split(b";")
        kept.append(
            b"; ".join(
                [
                    name.partition(b"=")[0].strip() + b"=",
                    *sorted(
                        each.strip().lower()
                        for each in attributes
                        if not each.strip().lower().startswith((b"expires", b"max-age"))
                    ),
                ]
            )
        )
    return b"\n".join(sorted(kept))
