# SPDX-License-Identifier: Apache-2.0
"""Of a ledger, what a line has room for: the unit that is counted, and what a shadow answered."""

from __future__ import annotations

from typing import Any, Final

RAW: Final = "answers not counted (raw bytes)"


def counted(ledger: dict[str, Any]) -> str:
    """The unit that tells what a shadow gets: requests, or the bytes of raw connections, which have none."""
    return "requests" if ledger["requests"]["seen"] or not ledger["bytes"]["seen"] else "bytes"


def answers(shadow: dict[str, Any]) -> str:
    """What a shadow answered: how many of each class."""
    none = RAW if not shadow["requests"]["seen"] and shadow["bytes"]["mirrored"] else "no answers"
    return ", ".join(f"{name} {count:,}" for name, count in shadow["answers"].items()) or none
