# SPDX-License-Identifier: Apache-2.0
"""The spec made ready to decide: rules, mirrors and shadows with their checks and samplers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Final, TypeAlias

from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger
from tapmirror.policy.expressions import Expressions
from tapmirror.policy.match import matcher
from tapmirror.policy.request import Request
from tapmirror.policy.rewrite import rewriter
from tapmirror.policy.sample import MIRROR, RULE, SHADOW, Sampler
from tapmirror.spec import Match, Over, Rule, Sampled, Shadow, TapSpec

Fate: TypeAlias = FilterReason | DropReason | None
"""Why a shadow does not get a request; None: it is not in the share (sampled out)."""


ALL: Final = 1 << 32
"""A threshold above all values of the flow hash."""


class Share:
    """The share of a tap, rule, mirror or shadow."""

    __slots__ = ("plain", "sampler")

    def __init__(self, spec: Sampled, level: int, seed: int) -> None:
        self.sampler = Sampler(spec, level, seed)
        self.plain = self.sampler.always and not self.sampler.capped
        """Whether everything passes."""

    def set_percent(self, percent: float) -> None:
        """Change the share."""
        self.sampler.set_percent(percent)
        self.plain = self.sampler.always and not self.sampler.capped


class Destination:
    """One shadow, with all its copies."""

    def __init__(self, spec: Shadow, first: int, tap: TapSpec, ledger: Ledger, expressions: Expressions) -> None:
        self.spec = spec
        self.targets = range(first, first + spec.copies)
        """Numbers of the shadow's copies, as targets of commands."""
        self.ledger = ledger
        self.check = matcher(spec.match, expressions)
        self.share = Share(spec, SHADOW, tap.seed)
        self.rewrite = rewriter(spec, tap.name)
        self.changes_method = spec.rewrite.method is not None
        self.pooled = spec.pooled
        self.threshold = ALL
        """The shadow gets only connections whose hash is below this, as long as it can take no more."""
        self.held_bytes = 0
        self.held_requests = 0

    def settle(self, fate: Fate, size: int, requests: int) -> None:
        """Enter what this shadow does not get (bytes, requests) into its ledger; `fate` None: that was sampled out."""
        copies = self.spec.copies
        size *= copies
        requests *= copies
        for account, count in ((self.ledger.bytes, size), (self.ledger.requests, requests)):
            if not count:
                continue
            if fate is None:
                account.sampled_out += count
            elif isinstance(fate, FilterReason):
                account.filtered[fate] += count
            else:
                account.dropped[fate] += count


class CompiledRule:
    """One rule."""

    def __init__(self, spec: Rule, tap: TapSpec, destinations: list[Destination], expressions: Expressions) -> None:
        self.spec = spec
        self.check = matcher(spec.match, expressions)
        self.share = Share(spec, RULE, tap.seed)
        self.body = spec.body
        self.skips = spec.body is not None and spec.body.over is Over.SKIP
        by_label = {each.spec.label: each for each in destinations}
        self.mirrors: list[tuple[Destination, Share | None]]
        if spec.mirror is None:
            self.mirrors = [(each, None) for each in destinations]
        else:
            self.mirrors = []
            for mirror in spec.mirror:
                share = Share(mirror, MIRROR, tap.seed)
                self.mirrors.append((by_label[mirror.shadow], None if share.plain else share))
        chosen = {id(each) for each, _ in self.mirrors}
        self.others = [each for each in destinations if id(each) not in chosen]
        """Shadows that this rule does not name."""
        self.plain: list[Destination] | None = None
        """Where every request of this rule goes, except tunnels; None: this depends on the request."""
        wholly = all(share is None and each.check is None and each.share.plain for each, share in self.mirrors)
        if wholly and not self.others and self.share.plain and self.body is None:
            self.plain = [each for each, _ in self.mirrors]


Finder: TypeAlias = Callable[[Request], CompiledRule | None]
"""The first of some rules that a request matches."""
RUN: Final = 500
"""Most rules that one expression looks for."""


def finder(rules: Sequence[CompiledRule]) -> Finder:
    """The first rule that a request matches.

    Rules that follow each other and go by the beginning of the path (or all of it), as most do, are looked for by one
    expression: one call for all of them, and not one for each.
    """
    finders: list[Finder] = []
    for literal, some in groupby(rules, lambda rule: _literal(rule) is not None):
        if literal:
            finders += [_by_path(run) for run in iter(lambda some=some: list(islice(some, RUN)), [])]  # type: ignore[misc]
        else:
            finders += [_by_check(rule) for rule in some]
    if len(finders) == 1:
        return finders[0]

    def find(request: Request) -> CompiledRule | None:
        for each in finders:
            rule = each(request)
            if rule is not None:
                return rule
        return None

    return find


def _literal(rule: CompiledRule) -> bytes | None:
    """The expression for the path, if the rule asks for nothing else; otherwise None."""
    if len(rule.spec.match) != 1:
        return None
    match = rule.spec.match[0]
    text = match.path
    if text is None or text.ignore_case or text.invert or match != Match(path=text):
        return None
    if text.prefix is not None:
        return re.escape(text.prefix.encode())
    return None if text.exact is None else re.escape(text.exact.encode()) + rb"\Z"


def _by_path(rules: list[CompiledRule]) -> Finder:
    expressions = [_literal(rule) or b"" for rule in rules]
    match = re.compile(b"|".join(b"(%b)" % each for each in expressions)).match

    def find(request: Request) -> CompiledRule | None:
        found = match(request.path)
        return None if found is None or found.lastindex is None else rules[found.lastindex - 1]

    return find


def _by_check(rule: CompiledRule) -> Finder:
    check = rule.check
    if check is None:
        return lambda request: rule
    return lambda request: rule if check(request) else None
