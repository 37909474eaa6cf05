# SPDX-License-Identifier: Apache-2.0
"""The figures as Markdown, for a merge request or an issue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tapmirror.compare import EndpointFigures, FieldFigures, Figures, Nature
from tapmirror.report.words import (
    KINDS,
    OUTCOMES,
    clean,
    count,
    duration,
    limits_of,
    milliseconds,
    nature,
    percent,
    rtt,
    slower,
)

ENDPOINTS: Final = 30
"""Rows of the table."""
_SPECIAL: Final = re.compile(r"[\\`*_{}\[\]<>()#+!|~&@]")


def markdown(figures: Figures) -> str:
    """A section of GitHub-flavoured Markdown; nothing in it that came from the network is markup or a mention."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    verdict = figures.verdict
    yield f"## {_text(figures.tap)}: {_text(figures.shadow)} against production: {OUTCOMES[verdict.outcome]}"
    yield ""
    yield f"{_text(verdict.reason)}."
    yield ""
    yield (
        f"{count(figures.paired)} of {count(figures.requests)} requests compared in {duration(figures.seconds)}, "
        f"level `{figures.level}`."
    )
    yield ""
    if verdict.checks:
        yield "| limit | shadow | certain | at most | |"
        yield "|---|---:|---:|---:|---|"
        for check in verdict.checks:
            estimate, interval, limit = limits_of(check)
            yield f"| {check.name} | {estimate} | {interval} | {limit} | {check.outcome.value} |"
        yield ""
    yield "| | requests | errors | | p50 | | p99 | | | differing |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    yield "| | | production | shadow | production | shadow | production | shadow | | |"
    for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
        yield _row(endpoint)
    if len(figures.endpoints) > ENDPOINTS:
        yield f"\n{len(figures.endpoints) - ENDPOINTS} more endpoints are not shown."
    for endpoint in figures.endpoints[:ENDPOINTS]:
        fields = [field for field in endpoint.fields if field.nature is not Nature.NOISE]
        if fields:
            yield ""
            yield f"### {_text(endpoint.name)}"
            yield ""
            for field in fields:
                yield from _field(field)
    noise = sorted({field.path for each in figures.endpoints for field in each.fields if field.nature is Nature.NOISE})
    yield ""
    if noise:
        yield f"Taken for noise: {', '.join(_text(path) for path in noise[:40])}."
        yield ""
    for reason, number in [*figures.unpaired.items(), *figures.failures.items()]:
        yield f"* {_text(reason)}: {count(number)} requests"
    for note in figures.notes:
        yield f"* {_text(note)}"
    yield ""
    yield rtt(figures)


def _row(endpoint: EndpointFigures) -> str:
    one, other = endpoint.production, endpoint.shadow
    cells = (
        _text(endpoint.name),
        count(endpoint.pairs),
        percent(one.error_rate),
        percent(other.error_rate),
        milliseconds(one.last["p50"]),
        milliseconds(other.last["p50"]),
        milliseconds(one.last["p99"]),
        milliseconds(other.last["p99"]),
        slower(endpoint),
        percent(endpoint.diff_rate.value),
    )
    return f"| {' | '.join(cells)} |"


def _field(field: FieldFigures) -> Iterator[str]:
    early = " (too early to tell it from noise)" if field.nature is Nature.WAITING else ""
    kind = _text(KINDS.get(field.kind, field.kind))
    yield f"* **{_text(field.path)}**: {kind} in {percent(field.raw)} ({nature(field)}){early}"
    for sample in field.samples[:1]:
        yield f"    * production `{_code(sample.one)}`, shadow `{_code(sample.other)}`"
        yield f"    * `{_code(sample.curl)}`"


def _text(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], clean(text)).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _code(text: str) -> str:
    """Inside of backquotes, where nothing but a backquote is special."""
    return clean(text).replace("`", "'").replace("|", "¦")
