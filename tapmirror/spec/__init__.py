# SPDX-License-Identifier: Apache-2.0
"""The tap's specification: one typed structure, wherever it comes from.

Pure: names are not resolved and no interface is looked at here.
"""

from tapmirror.spec.budget import Budget
from tapmirror.spec.compare import Compare, Level
from tapmirror.spec.errors import SpecError
from tapmirror.spec.match import Match, Size, Text
from tapmirror.spec.rewrite import PathRewrite, Redact, Rewrite
from tapmirror.spec.sampled import By, Ramp, Sampled
from tapmirror.spec.shadow import Shadow, Tls, parse_shadow
from tapmirror.spec.tap import (
    MAX_WORKERS,
    BodyLimit,
    Capture,
    Hook,
    Limits,
    Mirror,
    Over,
    Pacing,
    Protocol,
    Rule,
    Spread,
    TapSpec,
)

__all__ = [
    "MAX_WORKERS",
    "BodyLimit",
    "Budget",
    "By",
    "Capture",
    "Compare",
    "Hook",
    "Level",
    "Limits",
    "Match",
    "Mirror",
    "Over",
    "Pacing",
    "PathRewrite",
    "Protocol",
    "Ramp",
    "Redact",
    "Rewrite",
    "Rule",
    "Sampled",
    "Shadow",
    "Size",
    "SpecError",
    "Spread",
    "TapSpec",
    "Text",
    "Tls",
    "parse_shadow",
]
