# SPDX-License-Identifier: Apache-2.0
"""The figures as JSON, for programs.  The schema is that of `compare.figures.Figures`, named in its `schema`."""

from __future__ import annotations

import msgspec

from tapmirror.compare.figures import Figures


def plain(*found: Figures) -> str:
    """One JSON document; numbers that are not known, and ends of intervals that are open, are null.

    Of several shadows it has theirs in a list, as `run --json` has the ledgers of several taps.
    """
    document = found[0] if len(found) == 1 else {"shadows": found}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
