# SPDX-License-Identifier: Apache-2.0
"""The spec made ready to decide: rules, mirrors and shadows with their checks and samplers."""

from __future__ import annotations

from typing import TypeAlias

from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger
from tapmirror.policy.expressions import Expressions
from tapmirror.policy.match import matcher
from tapmirror.policy.rewrite import rewriter
from tapmirror.policy.sample import MIRROR, RULE, SHADOW, Sampler
from tapmirror.spec import Over, Rule, Sampled, Shadow, TapSpec

Fate: TypeAlias = FilterReason | DropReason | None
"""Why a shadow does not get a request; None: it is not in the share (sampled out)."""


class Share:
    """A check and a sampler: what a tap, rule, mirror or shadow has of its own."""

    __slots__ = ("plain", "sampler")

    def __init__(self, spec: Sampled, level: int, seed: int) -> None:
        self.sampler = Sampler(spec, level, seed)
        self.plain = self.sampler.always and not self.sampler.capped
        """Everything passes."""

    def set_percent(self, percent: float) -> None:
        """Change the share."""
        self.sampler.set_percent(percent)
        self.plain = self.sampler.always and not self.sampler.capped


class Destination:
    """One shadow, with all its copies."""

    def __init__(self, spec: Shadow, first: int, tap: TapSpec, ledger: Ledger, expressions: Expressions) -> None:
        self.spec = spec
        self.targets = range(first, first + spec.copies)
        """Numbers of its copies."""
        self.ledger = ledger
        self.check = matcher(spec.match, expressions)
        self.share = Share(spec, SHADOW, tap.seed)
        self.rewrite = rewriter(spec, tap.name)
        self.changes_method = spec.rewrite.method is not None
        self.pooled = spec.pooled
        self.held_bytes = 0
        self.held_requests = 0

    def settle(self, fate: Fate, size: int, requests: int) -> None:
        """Enter into the ledger what this shadow does not get."""
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
