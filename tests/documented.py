# SPDX-License-Identifier: Apache-2.0
"""The names that docs/JSON.md has of the fields of a section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

JSON: Final = Path(__file__).parent.parent / "docs" / "JSON.md"
COUNTS: Final = frozenset({"events", "answers", "filtered", "dropped", "buckets"})
"""Objects whose keys are data, and what is under them."""
OPAQUE: Final = frozenset({"compare", "comparison", "comparison_spec"})
"""Objects of which it says no more than that."""


def section(title: str) -> str:
    """The text of a section."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", JSON.read_text(), re.M | re.S)
    return str(found)


def named(title: str) -> set[str]:
    """Whatever a section has in backquotes, path by path and word by word."""
    return {word for code in re.findall(r"`([^`]+)`", section(title)) for word in re.findall(r"\w+", code)}


def rows(title: str) -> set[str]:
    """The fields that its tables are about: the last part of each path."""
    cells = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return {code.rpartition(".")[2] for cell in cells for code in re.findall(r"`([^`]+)`", cell)}


def fields(document: Any, parent: str = "") -> set[str]:
    """The names of all fields of a document but those that are data."""
    if isinstance(document, list):
        return {name for each in document for name in fields(each)}
    if not isinstance(document, dict) or parent in COUNTS | OPAQUE:
        return set()
    names = set() if parent == "shadows" else set(document)
    return names.union(*(fields(value, name) for name, value in document.items()))
