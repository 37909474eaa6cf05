# SPDX-License-Identifier: Apache-2.0
"""nginx's variables, conditions and addresses in our terms."""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

from tapmirror.spec.translated import as_template, searched

Text: TypeAlias = dict[str, Any]
"""A condition on a text, as in a file."""

VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
EVERY_REQUEST: Final = frozenset(
    {"request_id", "msec", "pid", "connection_requests", "time_local", "time_iso8601", "date_gmt", "date_local"}
)
"""Variables that differ from one request to the next, or from one second to the next."""
_TEMPLATES: Final = {
    "remote_addr": "{client}",
    "remote_port": "{client_port}",
    "connection": "{connection}",
    "host": "{host}",
    "http_host": "{host}",
    "request_uri": "{target}",
    "time_iso8601": "{time}",
    "scheme": "http",
}


def share_by(variable: str) -> dict[str, str] | None:
    """The share that splits by a variable."""
    if variable in ("remote_addr", "binary_remote_addr"):
        return {"by": "key", "key": "client"}
    if variable == "connection":
        return {"by": "connection"}
    kind, _, name = variable.partition("_")
    group = {"http": "header", "cookie": "cookie", "arg": "query"}.get(kind)
    if group is None or not name:
        return None
    return {"by": "key", "key": f"{group}:{name.replace('_', '-') if kind == 'http' else name}"}


def turned_away(operator: str, value: str, band: str) -> bool:
    """Whether `if ($variable OPERATOR VALUE)` holds for a value."""
    if operator == "=":
        return band == value
    if operator == "!=":
        return band != value
    if operator in ("~", "~*", "!~", "!~*"):
        try:
            found = holds(searched(("(?i)" if "*" in operator else "") + value), band)
        except ValueError:
            return False
        return found is not operator.startswith("!")
    return band not in ("", "0")


def passing(operator: str, value: str) -> Text | None:
    """The opposite of a condition on a field that may be absent, which is empty to nginx.

    Without an operator it holds for what is neither empty nor 0.
    """
    if operator in ("=", "!="):
        text: Text = {"exact": value} if value else {"regex": ".+", "invert": True}
    elif operator in ("~", "!~", "~*", "!~*"):
        try:
            text = searched(("(?i)" if "*" in operator else "") + value)
        except ValueError:
            return None
    else:
        text = {"regex": "[^0]|..+"}
    if not operator.startswith("!"):
        text["invert"] = not text.get("invert", False)
    return {name: each for name, each in text.items() if each is not False}


def template(value: str, known: dict[str, str]) -> str | None:
    """A value with variables as a template; None: one of them has no equivalent."""
    parts = []
    at = 0
    for found in VARIABLE.finditer(value):
        parts.append(as_template(value[at : found.start()]))
        name = found[1] or found[2]
        if name in known:
            parts.append(as_template(known[name]))
        elif name in _TEMPLATES:
            parts.append(_TEMPLATES[name])
        else:
            return None
        at = found.end()
    return "".join([*parts, as_template(value[at:])])


def holds(text: Text, value: str) -> bool:
    """Whether a condition made by `searched` holds."""
    import re2

    if "regex" in text:
        return bool(re2.fullmatch(text["regex"], value))
    kind, literal = next((kind, str(each)) for kind, each in text.items())
    if kind == "exact":
        return value == literal
    return value.startswith(literal) if kind == "prefix" else value.endswith(literal)


def host_port(text: str, standard: int) -> tuple[str, int]:
    """`host`, `host:port`, `[host]:port`."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?", text)
    if found is None:
        return text, standard
    return found[1].strip("[]"), int(found[2]) if found[2] else standard
