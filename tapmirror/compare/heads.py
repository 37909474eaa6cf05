# SPDX-License-Identifier: Apache-2.0
"""What the header fields of two answers differ in."""

from __future__ import annotations

from tapmirror.compare.findings import Change, Findings
from tapmirror.compare.words import shortened


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
        if mine is not None and its is not None and name == b"set-cookie":
            mine, its = _cookies(mine), _cookies(its)
            if mine == its:
                continue
        path = "header." + shortened(name.decode("latin-1"))
        if its is None:
            add(Change.MISSING, path, mine, None)
        elif mine is None:
            add(Change.EXTRA, path, None, its)
        elif not same_text(mine.decode("latin-1"), its.decode("latin-1")):
            add(Change.VALUE, path, mine, its)


def fields(head: bytes) -> dict[bytes, bytes]:
    """Of a response's head: values by lower-case name; several of one name joined by a line break."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            before = found.get(name)
            found[name] = value if before is None else before + b"\n" + value
    return found


def _may_differ(one: bytes, other: bytes, ignored: frozenset[bytes]) -> bool:
    """Whether two heads have different lines whose names count.  Most differ in Date and identifiers only."""
    mine, its = one.split(b"\n"), other.split(b"\n")
    lines, its_lines = {*mine}, {*its}
    if len(lines) < len(mine) or len(its_lines) < len(its):  # a line twice may be there once on the other side
        return True
    for line in lines ^ its_lines:
        name, colon, _ = line.partition(b":")
        if colon and name.strip().lower() not in ignored:
            return True
    return False


def _cookies(value: bytes) -> bytes:
    """Cookies without their values and times: sessions differ always."""
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
