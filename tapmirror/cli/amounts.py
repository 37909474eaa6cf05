# SPDX-License-Identifier: Apache-2.0
"""Of a ledger, what a line has room for: the unit that is counted, and what a shadow answered."""

from __future__ import annotations

from typing import Any, Final

RAW: Final = "responses not counted (raw bytes)"


def counted(ledger: dict[str, Any]) -> str:
    """The unit that tells what a shadow gets: requests, or the bytes of raw connections, which have none."""
    return "requests" if ledger["requests"]["seen"] or not ledger["bytes"]["seen"] else "bytes"


def not_counted(ledger: dict[str, Any]) -> str:
    """What the account of requests cannot know: those in segments that were lost before they were reassembled; "": none
    were, or it is not requests that are counted.
    """
    lost = sum(ledger["segments"]["dropped"].values())
    if not lost or counted(ledger) != "requests":
        return ""
    return f"not counted: those in {lost:,} lost segment{'s' * (lost != 1)}"


def answers(shadow: dict[str, Any]) -> str:
    """What a shadow answered: how many of each class."""
    none = RAW if not shadow["requests"]["seen"] and shadow["bytes"]["mirrored"] else "no responses"
    return ", ".join(f"{name} {count:,}" for name, count in shadow["answers"].items()) or none
