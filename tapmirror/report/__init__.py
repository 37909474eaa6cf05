# SPDX-License-Identifier: Apache-2.0
"""Reports of a comparison: from `figures` to text for a terminal, Markdown, JSON, or one page of HTML.

Everything that an application or a client said is hostile: it is escaped, or shown as plain text without control
characters.  Pure: a report is a function of its figures, those of one shadow or of several.
"""

from collections.abc import Callable, Mapping
from typing import Final

from tapmirror.report.html import html
from tapmirror.report.markdown import markdown
from tapmirror.report.plain import plain
from tapmirror.report.terminal import terminal

FORMS: Final[Mapping[str, Callable[..., str]]] = {
    "terminal": terminal,
    "markdown": markdown,
    "json": plain,
    "html": html,
}
"""Writers of a report by the name that `report --format` takes; each takes the figures of one shadow or more."""

__all__ = ["FORMS", "html", "markdown", "plain", "terminal"]
