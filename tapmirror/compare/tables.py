# SPDX-License-Identifier: Apache-2.0
"""Tables of text (CSV, RFC 4180) as documents: each row by the names of its columns.

If they were compared by lines, a time in each row would be noise of that line, and hide other differences in digits.
"""

from __future__ import annotations

import csv
import io
from typing import Final

ROWS: Final = 2000
"""Most rows of a table that is parsed, in some milliseconds; a longer one is compared as text."""
COLUMNS: Final = 200
_NAMES: Final = {",": (b"text/csv", b"application/csv"), "\t": (b"text/tab-separated-values",)}


def rows(text: str, type_: bytes) -> list[dict[str, str]] | None:
    """The rows below the first, which names the columns; None: it is not a table with names."""
    kind = type_.partition(b";")[0].strip().lower()
    delimiter = next((delimiter for delimiter, kinds in _NAMES.items() if kind in kinds), None)
    if delimiter is None or max(text.count("\n"), text.count("\r")) > ROWS:
        return None
    first = text.removeprefix("\ufeff").partition("\n")[0]
    if delimiter not in first and ";" in first:  # used where numbers have a comma
        delimiter = ";"
    try:
        names, *table = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter)
    except (csv.Error, ValueError):
        return None
    if not 1 < len(names) <= COLUMNS or len({*names}) < len(names) or not all(map(_is_name, names)):
        return None
    table = [row for row in table if row]
    if any(len(row) != len(names) for row in table):
        return None
    return [dict(zip(names, row, strict=True)) for row in table]


def _is_name(cell: str) -> bool:
    """Whether a cell may be the name of a column: it is not a value of digits."""
    return any(map(str.isalpha, cell))
