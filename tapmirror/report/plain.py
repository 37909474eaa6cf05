# SPDX-License-Identifier: Apache-2.0
"""The figures as JSON, for programs.  The schema is that of `compare.figures.Figures`, named in its `schema`."""

from __future__ import annotations

import msgspec

from tapmirror.compare import Figures


def plain(figures: Figures) -> str:
    """One JSON document; numbers that are not known, and ends of intervals that are open, are null."""
    return msgspec.json.format(msgspec.json.encode(figures), indent=2).decode()
