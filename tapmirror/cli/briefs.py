# SPDX-License-Identifier: Apache-2.0
"""The present state of a comparison in one line.

The modules of comparison are imported only when needed: they are as much as everything else that these commands import.
"""

from __future__ import annotations

import importlib
from typing import Any

from tapmirror.compare.briefs import badness


def load() -> None:
    """Import them now, for a command that runs for long: the package may be replaced meanwhile."""
    for module in ("compare.brief", "compare.words", "report.words"):
        importlib.import_module(f"tapmirror.{module}")


def brief_lines(ledger: dict[str, Any]) -> list[str]:
    """The lines of a running tap: one for each shadow, and what is not compared."""
    shadows = (ledger.get("compare") or {}).get("shadows") or {}
    return [*(f"{label}: {brief_line(found)}" for label, found in shadows.items()), *raw_lines(ledger)]


def raw_lines(ledger: dict[str, Any]) -> list[str]:
    """A line about connections that cannot be compared, if there are any."""
    raw = ledger["events"].get("flows_raw", 0) if ledger.get("compare") else 0
    if not raw:
        return []
    from tapmirror.report.words import RAW

    return [f"{raw:,} {RAW}"]


def brief_line(found: dict[str, Any]) -> str:
    """The line of one shadow, judged by the default limits."""
    everything = found["all"]
    pairs = everything["pairs"]
    if not pairs:
        return f"nothing compared yet of {found['requests']:,} requests"
    from tapmirror.compare.brief import judged
    from tapmirror.compare.words import clean
    from tapmirror.report.words import percent

    verdict = judged(found)
    share = everything["differing"] / everything["compared"] if everything["compared"] else None
    parts = [f"{pairs:,} compared", f"{percent(share)} differ"]
    worst = max(found["worst"], key=lambda name: badness(found["worst"][name]), default=None)
    if worst is not None and badness(found["worst"][worst]) > 0:
        counts = found["worst"][worst]
        parts[-1] += f", worst {clean(worst)} ({percent(counts['differing'] / max(1, counts['compared']))})"
    errors = [percent(everything[side]["errors"] / pairs) for side in ("production", "shadow")]
    parts.append(f"errors {errors[0]} / {errors[1]}")
    parts += [f"p99 x{check.estimate:.2f}" for check in verdict.checks if check.name == "p99 ratio" and check.estimate]
    return f"{'  '.join(parts)}  verdict so far: {verdict.outcome.value}"
