# SPDX-License-Identifier: Apache-2.0
"""Builds the pipeline of a worker that compares responses, with each copy of each shadow."""

from __future__ import annotations

from tapmirror.compare.bodies import missing
from tapmirror.compare.comparison import Comparison
from tapmirror.comparing import ComparingPipeline
from tapmirror.ledger import Ledger
from tapmirror.policy import Policy
from tapmirror.policy.match import compile_text
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.tracer import Tracer
from tapmirror.worker.setup import Setup


def load() -> None:
    """Import also the packages that decode bodies, before the worker gives up the privilege to read files."""
    missing()


def pipeline(setup: Setup, ledger: Ledger, policy: Policy | None, tracer: Tracer | None) -> ComparingPipeline:
    """The pipeline, which frames requests and feeds the comparison."""
    spec = setup.spec
    rules = [spec.compare.redact or USUAL, *([spec.redact] if spec.redact is not None else [])]
    comparison = Comparison(
        spec.compare,
        [
            (label, f"{'http' if shadow.tls is None else 'https'}://{shadow.end_point}")
            for shadow in spec.shadows
            for label in shadow.copy_labels
        ],
        SampleRedactor(rules, setup.secret),
        [compile_text(pattern) for pattern in spec.compare.ignore_patterns],
    )
    return ComparingPipeline(spec, ledger, policy, comparison, tracer)
