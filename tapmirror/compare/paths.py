# SPDX-License-Identifier: Apache-2.0
"""Which paths of differences are ignored: patterns as a regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final


def any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """An expression for paths as in `redact.json` and everything within them.  A path that names no other part is one
    of the body (`body.`).

    Matching takes time that is bounded by the square of a path's length, whatever the patterns: what stands between two
    `**` is matched where it is found first, and not tried again (`(?>...)`), because whatever follows may come any
    number of steps later.  The same holds between two `*` of one step.
    """
    choices = []
    for pattern in patterns:
        if not pattern.startswith(("body", "header.", "status")):
            pattern = f"body.{pattern}" if not pattern.startswith("[]") else f"body{pattern}"
        first, *parts = _ANY_DEPTH.split(pattern)
        found = _steps(first)
        if parts:
            found += _DOWN
            for part in parts[:-1]:
                found += f"(?>{_DEEPER}*?{_steps(part)}{_DOWN})"
            if parts[-1]:
                found += f"{_DEEPER}*{_steps(parts[-1])}"
        choices.append(found if parts and not parts[-1] else found + _END)
    return re.compile("|".join(choices))


def _steps(pattern: str) -> str:
    """A part of a path without `**`."""
    found = []
    for step in re.findall(r"\[\]|\.|(?:[^.\[]|\[(?!\]))+", pattern):
        first, *others = [re.escape(each) for each in re.split(r"\*+", step)]
        found.append(first)
        if others:
            found += [rf"(?>[^.\[]*?{each})" for each in others[:-1]]
            found.append(rf"[^.\[]*{others[-1]}")
    return "".join(found)


_ANY_DEPTH: Final = re.compile(r"(?:\.\*\*)+(?=\.|\Z)\.?")
"""`**` as a step of its own; several in a row are one."""
_DOWN: Final = r"(?:\[\])*\."
_DEEPER: Final = r"(?:[^.]*\.)"
_END: Final = r"(?=[.\[]|\Z)"
