# SPDX-License-Identifier: Apache-2.0
"""The figures as one page of HTML for people who would rather look than read.

One file with everything in it: no script, no font, no picture from elsewhere.  A policy in its head (CSP level 3)
forbids all that to the browser too, so that even a mistake in escaping could not run or fetch anything.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape as _escape
from typing import Final

from tapmirror.compare.figures import EndpointFigures, FieldFigures, Figures, SideFigures
from tapmirror.compare.noise import Nature
from tapmirror.compare.summary import Sample
from tapmirror.compare.verdict import Outcome, together
from tapmirror.report import charts
from tapmirror.report.style import STYLE
from tapmirror.report.words import (
    EARLY,
    KINDS,
    OUTCOMES,
    between,
    count,
    duration,
    limits_of,
    losses,
    milliseconds,
    nature,
    percent,
    rtt,
    size,
    slower,
    some,
    times,
)

ENDPOINTS: Final = 25
"""Endpoints that are shown at once, beside all that differ."""
CODES: Final = 12
"""Most status codes that are shown as numbers."""
CLASSES: Final = {Outcome.PASS: "good", Outcome.FAIL: "bad", Outcome.UNDECIDED: "open"}
_HASH: Final = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
LEGEND: Final = (
    '<p class="legend"><span><i class="p"></i>production</span><span><i class="s"></i>shadow</span>{more}</p>'
)


def escape(text: str) -> str:
    """Text as text: no markup, and nothing that controls how what stands beside it is shown (bidirectional marks)."""
    return _escape("".join(c if c.isprintable() or c in "\n\u00a0" else "·" for c in text))


def html(*found: Figures) -> str:
    """The page: of several shadows first what is said of each, then all about one after the other."""
    first = found[0]
    title = _name(first)
    outcome = first.verdict.outcome
    if len(found) > 1:
        title = f"{escape(some(_taps(found)))}: {len(found)} shadows against production"
        outcome = together([figures.verdict.outcome for figures in found])
    return "".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><meta name="robots" content="noindex">',
            f"<title>{OUTCOMES[outcome]} · {title}</title><style>{STYLE}</style></head><body><main>",
            *(_pages(found, title) if len(found) > 1 else _page(first, title)),
            "</main></body></html>\n",
        ]
    )


def _name(figures: Figures) -> str:
    return escape(f"{figures.tap}: {figures.shadow} against production")


def _taps(found: Sequence[Figures]) -> list[str]:
    return [*dict.fromkeys(figures.tap for figures in found)]


def _pages(found: Sequence[Figures], title: str) -> Iterator[str]:
    several = len(_taps(found)) > 1
    yield f"<h1>{title}</h1>"
    for figures in found:
        verdict = figures.verdict
        yield f'<section class="verdict {CLASSES[verdict.outcome]}"><b>{OUTCOMES[verdict.outcome]}</b>'
        name = f"{figures.tap}: {figures.shadow}" if several else figures.shadow
        yield f"<div><h2>{escape(name)}</h2><p>{escape(verdict.reason)}</p></div></section>"
    for figures in found:
        yield '<div class="one">'
        yield from _page(figures, _name(figures))
        yield "</div>"


def _page(figures: Figures, title: str) -> Iterator[str]:
    yield f"<h1>{title}</h1>"
    yield from _verdict(figures)
    if figures.verdict.checks and figures.paired:
        yield '<div class="grid3">'
        for check in figures.verdict.checks:
            estimate, around, _ = limits_of(check)
            tag = f'<span class="tag {CLASSES[check.outcome]}">{check.outcome.value}</span>'
            yield f'<section class="card"><div class="bar"><h3>{escape(check.name)}</h3>{tag}</div>'
            yield f'<div class="bar"><span class="big num">{estimate}</span>'
            yield f'<small class="dim">interval {around}</small></div>{charts.interval(check)}</section>'
        yield "</div>"
    yield from _tiles(figures)
    yield from _pictures(figures)
    yield "<h2>Endpoints, the worst first</h2>"
    shown = max(ENDPOINTS, sum(map(_concerns, figures.endpoints)))
    for n, endpoint in enumerate(figures.endpoints[:shown]):
        yield from _endpoint(endpoint, opened=n == 0 and _concerns(endpoint))
    if len(figures.endpoints) > shown:
        yield f'<details class="more"><summary>{len(figures.endpoints) - shown} more</summary>'
        for endpoint in figures.endpoints[shown:]:
            yield from _endpoint(endpoint, opened=False)
        yield "</details>"
    if not figures.endpoints:
        yield '<p class="dim">Nothing was compared yet.</p>'
    yield from _noise(figures)
    yield from _losses(figures)
    yield f"<footer><p>{escape(rtt(figures))}</p>"
    yield (
        f"<p>Each interval by itself holds at every moment, with a probability of {percent(1 - figures.alpha)} "
        "(confidence sequences): look as often as you like.</p></footer>"
    )


def _pictures(figures: Figures) -> Iterator[str]:
    """How fast both are, and what they answer."""
    everything = figures.all
    if not everything.pairs:
        return
    one, other = everything.production, everything.shadow
    yield "<h2>How fast</h2>"
    yield LEGEND.format(more="<span>time to the last byte</span>")
    yield '<div class="grid2">'
    yield _card("Production above, shadow below", charts.distribution(everything.bins))
    if everything.bins:
        yield _card("Quantiles", charts.quantile_marks(one, other))
    worse = any(point.errors[1] > point.errors[0] for point in figures.line)
    title = "Over time: p50, and p99 dashed" + ("; red: more errors at the shadow" if worse else "")
    yield _card(title, charts.timeline(figures.line, figures.width))
    yield _card("Status codes", charts.statuses(one, other) + _codes(one, other))
    yield "</div>"


def _codes(one: SideFigures, other: SideFigures) -> str:
    """The status mix in numbers."""
    codes = sorted({*one.statuses, *other.statuses})
    if codes == ["200"]:
        return ""
    totals = [max(1, sum(side.statuses.values())) for side in (one, other)]
    rows = ""
    for code in codes[:CODES]:
        mine, its = (side.statuses.get(code, 0) for side in (one, other))
        shares = [percent(number / total) for number, total in zip((mine, its), totals, strict=True)]
        rows += f'<tr><td>{escape(code)}</td><td class="n">{count(mine)} <small class="dim">{shares[0]}</small></td>'
        rows += f'<td class="n">{count(its)} <small class="dim">{shares[1]}</small></td></tr>'
    if len(codes) > CODES:
        rows += f'<tr><td class="dim">{len(codes) - CODES} more</td><td></td><td></td></tr>'
    head = '<tr class="dim"><td></td><td class="n">production</td><td class="n">shadow</td></tr>'
    return f'<table class="codes">{head}{rows}</table>'


def _verdict(figures: Figures) -> Iterator[str]:
    verdict = figures.verdict
    yield f'<section class="verdict {CLASSES[verdict.outcome]}"><b>{OUTCOMES[verdict.outcome]}</b>'
    yield f"<p>{escape(verdict.reason)}</p></section>"


def _tiles(figures: Figures) -> Iterator[str]:
    everything = figures.all
    one, other, ratio = everything.production, everything.shadow, everything.paired_ratio
    share = figures.paired / figures.requests if figures.requests else 0.0
    yield f'<div class="tiles{" five" if figures.level == "status" else ""}">'
    yield _tile(
        "requests compared",
        count(figures.paired),
        f"{percent(share)} of {count(figures.requests)}, {duration(figures.seconds)}",
    )
    if not figures.paired:
        yield "</div>"
        return
    yield _tile("errors", f"{percent(one.error_rate)} → {percent(other.error_rate)}", "production → shadow")
    if everything.bins:
        yield _tile(
            "p99",
            f"{milliseconds(one.last['p99'])} → {milliseconds(other.last['p99'])}",
            f"{slower(everything)}; first byte {milliseconds(one.first['p99'])} → {milliseconds(other.first['p99'])}",
        )
        yield _tile(
            "shadow ÷ production, each request",
            times(ratio["p50"]),
            f"median; p90 {times(ratio['p90'])}, p99 {times(ratio['p99'])}",
        )
    yield _tile("mean size", f"{size(one.mean_bytes)} → {size(other.mean_bytes)}", "production → shadow")
    if figures.level != "status":
        yield _tile(
            "responses that differ",
            percent(everything.diff_rate.value),
            f"{count(everything.differing)} of {count(everything.compared)}",
        )
    yield "</div>"


def _endpoint(endpoint: EndpointFigures, *, opened: bool) -> Iterator[str]:
    one, other = endpoint.production, endpoint.shadow
    error = (endpoint.error_diff.low or 0) > 0
    slow = (endpoint.p99_ratio.low or 0) > 1
    yield f'<details{" open" if opened else ""}><summary><div class="ep">'
    yield f'<span class="name">{escape(endpoint.name)}</span>'
    yield _cell(count(endpoint.pairs), "requests")
    yield _cell(percent(other.error_rate), f"errors, was {percent(one.error_rate)}", error)
    yield _cell(slower(endpoint), f"p99, {milliseconds(other.last['p99']) if endpoint.bins else 'no times'}", slow)
    yield _cell(percent(endpoint.diff_rate.value), "differ", endpoint.differing > 0)
    yield '</div></summary><div class="body">'
    fields = [field for field in endpoint.fields if field.nature is not Nature.NOISE]
    for field in fields:
        yield from _field(field)
    if not fields:
        yield '<p class="dim">No difference but noise.</p>'
    for reason, number in endpoint.skipped.items():
        yield f'<p class="dim">{count(number)} bodies not compared: {escape(reason)}.</p>'
    yield '<div class="grid2">'
    if endpoint.bins:
        yield f"<div><h3>Times</h3>{charts.distribution(endpoint.bins)}</div>"
        yield f"<div><h3>Quantiles</h3>{charts.quantile_marks(one, other)}</div>"
    if set(one.statuses) != {"200"} or set(other.statuses) != {"200"}:
        yield f"<div><h3>Status codes</h3>{charts.statuses(one, other)}{_codes(one, other)}</div>"
    yield "</div>"
    yield (
        f'<p class="dim"><small>Error rate difference {between(endpoint.error_diff)}, '
        f"p99 ratio {times(endpoint.p99_ratio.low)} to {times(endpoint.p99_ratio.high)}, "
        f"difference rate {between(endpoint.diff_rate)}.</small></p></div></details>"
    )


def _field(field: FieldFigures) -> Iterator[str]:
    early = f' <span class="tag open">{EARLY}</span>' if field.nature is Nature.WAITING else ""
    kind = KINDS.get(field.kind, field.kind)
    yield (
        f'<div class="field"><div class="bar"><span class="path">{escape(field.path or field.kind)}</span>'
        f'<span>{escape(kind)} in <b class="num">{percent(field.raw)}</b> <small class="dim">({count(field.count)} '
        f"requests, {escape(nature(field))})</small>{early}</span></div>"
    )
    shown = set()
    for sample in field.samples:
        yield from _sample(sample, again=(sample.one, sample.other) in shown)
        shown.add((sample.one, sample.other))
    yield "</div>"


def _sample(sample: Sample, *, again: bool) -> Iterator[str]:
    """`again`: the values are those of one before it."""
    yield '<div class="sample">'
    if not again:
        yield f'<div class="pair"><div><code>{escape(sample.one)}</code></div>'
        yield f"<div><code>{escape(sample.other)}</code></div></div>"
    yield f"<details><summary>request and both responses</summary><pre>{escape(sample.curl)}</pre>"
    yield f'<div class="pair"><div><pre>{escape(sample.production)}</pre></div>'
    yield f"<div><pre>{escape(sample.shadow)}</pre></div></div></details></div>"


def _noise(figures: Figures) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for endpoint in figures.endpoints:
        for field in endpoint.fields:
            if field.nature is Nature.NOISE:
                found.setdefault(f"{field.path} ({KINDS.get(field.kind, field.kind)})", []).append(endpoint.name)
    if found:
        yield f'<h2>Noise</h2><details class="more"><summary>{count(len(found))} fields differ by themselves '
        yield 'and do not count</summary><div class="body"><table>'
        for path, names in sorted(found.items()):
            yield f'<tr><td><code>{escape(path)}</code></td><td class="dim">{escape(some(names))}</td></tr>'
        yield "</table></div></details>"


def _losses(figures: Figures) -> Iterator[str]:
    rows = [*losses(figures)]
    if rows or figures.notes:
        yield '<h2>What is not in it</h2><section class="card"><table>'
        for reason, number in rows:
            yield f'<tr><td>{escape(reason)}</td><td class="n">{count(number)}</td></tr>'
        for note in figures.notes:
            yield f"<tr><td>{escape(note)}</td><td></td></tr>"
        yield "</table></section>"


def _concerns(endpoint: EndpointFigures) -> bool:
    return bool(endpoint.differing or (endpoint.error_diff.low or 0) > 0 or (endpoint.p99_ratio.low or 0) > 1)


def _card(title: str, picture: str) -> str:
    return f'<section class="card"><h3>{escape(title)}</h3>{picture}</section>' if picture else ""


def _tile(name: str, value: str, more: str) -> str:
    value = value.replace(" ", "\u00a0").replace("\u00a0→\u00a0", " → ")  # a number stays with its unit
    return (
        f'<section class="card tile"><small>{escape(name)}</small><div class="big num">{escape(value)}</div>'
        f"<small>{escape(more)}</small></section>"
    )


def _cell(value: str, name: str, bad: bool = False) -> str:
    return f'<span class="num{" red" if bad else ""}">{escape(value)}<small>{escape(name)}</small></span>'
