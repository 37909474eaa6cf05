# SPDX-License-Identifier: Apache-2.0
"""The figures as Markdown, for a merge request or an issue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tapmirror.compare.figures import EndpointFigures, FieldFigures, Figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.words import clean
from tapmirror.report.words import (
    COLUMNS,
    EARLY,
    KINDS,
    LIMITS,
    OUTCOMES,
    SIDES,
    cells,
    compared,
    limits_of,
    nature,
    noise,
    open_fields,
    percent,
    remarks,
    rtt,
)

ENDPOINTS: Final = 30
"""Rows of the table of endpoints."""
_SPECIAL: Final = re.compile(r"[\\`*_{}\[\]<>()#+!|~&@]")
_BACKQUOTES: Final = re.compile("`+")


def markdown(*found: Figures) -> str:
    """Sections of GitHub-flavoured Markdown; nothing in them that came from the network is markup or a mention."""
    return "\n".join("\n".join(_lines(figures)) + "\n" for figures in found)


def _lines(figures: Figures) -> Iterator[str]:
    verdict = figures.verdict
    yield f"## {_text(figures.tap)}: {_text(figures.shadow)} against production: {OUTCOMES[verdict.outcome]}"
    yield ""
    yield f"{_text(verdict.reason)}."
    yield ""
    yield f"{compared(figures)}."
    yield ""
    if verdict.checks and figures.paired:
        yield f"| {' | '.join(LIMITS)} |"
        yield "|---|---:|---:|---:|---|"
        for check in verdict.checks:
            estimate, interval, limit = limits_of(check)
            yield f"| {check.name} | {estimate} | {interval} | {limit} | {check.outcome.value} |"
        yield ""
    if figures.paired:
        yield f"| {' | '.join(_heads())} |"
        yield f"|---|{'---:|' * (len(COLUMNS) - 1)}"
        for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
            yield _row(endpoint)
    if len(figures.endpoints) > ENDPOINTS:
        yield f"\n{len(figures.endpoints) - ENDPOINTS} more endpoints are not shown."
    for endpoint in figures.endpoints[:ENDPOINTS]:
        fields = open_fields(endpoint)
        if fields:
            yield ""
            yield f"### {_text(endpoint.name)}"
            yield ""
            for field in fields:
                yield from _field(field)
    yield ""
    for line in noise(figures, 40):
        yield f"* {_text(line)}"
    for remark in remarks(figures):
        yield f"* {_text(remark)}"
    yield ""
    yield rtt(figures)


def _heads() -> Iterator[str]:
    """Of the columns, in one row."""
    column = ""
    for name, side in zip(COLUMNS, SIDES, strict=True):
        column = name or column
        yield f"{column}, {side}" if side else column


def _row(endpoint: EndpointFigures) -> str:
    return f"| {' | '.join(map(_text, cells(endpoint)))} |"


def _field(field: FieldFigures) -> Iterator[str]:
    early = f" ({EARLY})" if field.nature is Nature.WAITING else ""
    kind = _text(KINDS.get(field.kind, field.kind))
    yield f"* **{_text(field.path)}**: {kind} in {percent(field.raw)} ({nature(field)}){early}"
    for sample in field.samples[:1]:
        yield f"    * production {_code(sample.one)}, shadow {_code(sample.other)}"
        yield f"    * {_code(sample.curl)}"


def _text(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], clean(text)).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _code(text: str) -> str:
    """A span of code, in which nothing is special but as many backquotes as are around it (CommonMark 0.31, 6.1).

    None is replaced: of a line for a shell that would end a word, and what follows it were commands.
    """
    text = clean(text) or " "
    fence = "`" * (1 + max(map(len, _BACKQUOTES.findall(text)), default=0))
    space = " " if text[0] in "` " or text[-1] in "` " else ""  # one on each side is none of the text
    return f"{fence}{space}{text}{space}{fence}"
