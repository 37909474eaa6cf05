# SPDX-License-Identifier: Apache-2.0
"""What is changed in a request for a shadow, and what is taken out of it before it leaves the host."""

from __future__ import annotations

import re
import string
from typing import Final

from tapmirror.spec.errors import Checked, Found, shown
from tapmirror.spec.match import TOKEN, regex_error

TEMPLATE_NAMES: Final = frozenset({"client", "client_port", "connection", "host", "target", "time", "tap", "shadow"})
FRAMING: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "keep-alive"}
)
"""Fields that say where a request ends and what the connection becomes (RFC 9112, 6 and 9; RFC 9110, 7.8 and 10.1.1):
a rewrite of them would tear the stream.  Host has a setting of its own."""
HOST: Final = re.compile(r"(?=.{1,255}\Z)(?:\[[0-9A-Za-z:.%_~\-]+\]|[!$&'()*+,;=%._~\-0-9A-Za-z]+)(?::[0-9]*)?")
KEEP: Final = "keep"
TARGET: Final = "target"
SHADOW_SUFFIX: Final = "shadow-suffix"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ACTION: Final = re.compile(r"remove|hash|replace:([ -~]{0,256})")


class PathRewrite(Checked, frozen=True, kw_only=True, rename={"becomes": "with"}):
    """A new path; the query stays.  Give exactly one of `prefix` and `regex`."""

    prefix: str | None = None
    """Change paths that begin with this; only the prefix is replaced."""
    regex: str | None = None
    r"""Regular expression (RE2); every match is replaced, with \1 to \9 for its groups."""
    becomes: str
    """The replacement."""

    def _check(self) -> Found:
        if (self.prefix is None) == (self.regex is None):
            yield "", "needs one of prefix and regex"
        if self.prefix is not None and not self.prefix.startswith("/"):
            yield "prefix", f"{shown(self.prefix)} does not begin with /"
        if self.regex is not None:
            if wrong := regex_error(self.regex):
                yield "regex", wrong
            elif wrong := _replacement_error(self.regex, self.becomes):
                yield "with", wrong
        if not re.fullmatch(r"[!-~]*", self.becomes):
            yield "with", f"{shown(self.becomes)} has a character that is not allowed in a path"


class Rewrite(Checked, frozen=True, kw_only=True):
    """What is changed, in this order: method, path, query, Host, fields removed, set, added."""

    host: str = KEEP
    """`keep`; `target`: the shadow's host and port; `shadow-suffix`: as Istio does, `reviews:9080` becomes
    `reviews-shadow:9080`; anything else is the new value."""
    method: str | None = None
    path: PathRewrite | None = None
    set_query: dict[str, str] = {}
    """Parameters with their values; existing ones of the same name are replaced."""
    remove_query: tuple[str, ...] = ()
    set_headers: dict[str, str] = {}
    """Fields with their values; existing ones of the same name are replaced.  Values are templates: `{client}`,
    `{client_port}`, `{connection}`, `{host}`, `{target}` (path and query), `{time}` (RFC 3339, UTC), `{tap}`,
    `{shadow}`; `{{` is a brace."""
    add_headers: dict[str, str] = {}
    """Fields with their values, added beside existing ones of the same name.  Values are templates, as in
    `set_headers`."""
    remove_headers: tuple[str, ...] = ()
    marker: str | None = None
    """Name of a field that marks a copy; its value is the tap's name."""
    x_forwarded_for: bool = False
    """Add the client's address to X-Forwarded-For."""

    def _check(self) -> Found:
        if not HOST.fullmatch(self.host):
            yield "host", f"{shown(self.host)} is not a host"
        if self.method is not None and (not TOKEN.fullmatch(self.method) or self.method == "CONNECT"):
            yield "method", f"{shown(self.method)} is not a valid method"
        for group in ("set_headers", "add_headers"):
            for name, value in getattr(self, group).items():
                yield from _field_problems(f"{group}.{name}", name)
                yield from _template_problems(f"{group}.{name}", value)
        for i, name in enumerate(self.remove_headers):
            yield from _field_problems(f"remove_headers[{i}]", name)
        if self.marker is not None:
            yield from _field_problems("marker", self.marker)
        for name in [*self.set_query, *self.remove_query]:
            if not name:
                yield "set_query" if name in self.set_query else "remove_query", "a parameter needs a name"


class Redact(Checked, frozen=True, kw_only=True):
    """What is taken out of every request before it leaves this host.

    An action is `remove`, `hash` (keyed, the same for equal values while the tap runs) or `replace:TEXT`.
    A body that cannot be inspected (too long, not the JSON that it claims to be, compressed) is not mirrored.
    """

    privacy: str | None = None
    """`strict`: the fields, parameters and JSON members that usually hold secrets or personal data."""
    headers: dict[str, str] = {}
    """Action by field name."""
    query: dict[str, str] = {}
    """Action by parameter name; also for bodies of HTML forms."""
    json: dict[str, str] = {}
    """Action by path of a member: `user.email`, `cards[].number`; `**.password` at any depth."""
    patterns: dict[str, str] = {}
    """Replacement by regular expression (RE2), for each match in the target, in field values and in the body."""
    body_bytes: int = 1 << 20
    """If JSON members or patterns are redacted, longer bodies are not mirrored: bodies are held in memory."""

    def _check(self) -> Found:
        if self.privacy not in (None, "strict"):
            yield "privacy", f"{shown(self.privacy)} is not strict"
        for name, action in self.headers.items():
            yield from _field_problems(f"headers.{name}", name)
            yield from _action_problems(f"headers.{name}", action)
        for group in ("query", "json"):
            for name, action in getattr(self, group).items():
                if not name:
                    yield group, "an empty name"
                yield from _action_problems(f"{group}.{name}", action)
        for name in self.json:
            if not _is_path(name):
                yield f"json.{name}", "steps are names, *, ** (but not the last one), and [] for any element"
        for text, replacement in self.patterns.items():
            wrong = regex_error(text)
            if wrong:
                yield f"patterns.{text}", wrong
            if not re.fullmatch(r"[!-~]*", replacement) or '"' in replacement or "\\" in replacement:
                yield f"patterns.{text}", f"{shown(replacement)}: only visible characters but quotes and backslashes"
        if not 0 < self.body_bytes <= 64 << 20:
            yield "body_bytes", f"{self.body_bytes} is not between 1 and {64 << 20}"


def _replacement_error(regex: str, becomes: str) -> str | None:
    """Why matches cannot be replaced by this: it has a group that the expression does not have, or no valid escape
    sequence.
    """
    import re2

    try:
        re2.compile(f"|{regex}".encode()).match(b"").expand(becomes.encode())
    except (IndexError, ValueError) as error:
        return f"{shown(becomes)}: {error}"
    return None


def _is_path(text: str) -> bool:
    """Whether it is a path of JSON members.  Anything that only looks like one would remove nothing."""
    steps = text.replace("[]", "").split(".")
    return steps[-1] != "**" and all(step in ("*", "**") or not {*step} & {*"*[]"} for step in steps)


def _field_problems(path: str, name: str) -> Found:
    if not TOKEN.fullmatch(name):
        yield path, f"{shown(name)} is not a field name"
    elif name.lower() in FRAMING:
        yield (
            path,
            f"{name} frames the request: it cannot be changed" + (" here (see host)" if name.lower() == "host" else ""),
        )


def _template_problems(path: str, value: str) -> Found:
    if _CONTROL.search(value) or not value.isascii():
        yield path, f"{shown(value)}: control characters (CR, LF, NUL) and other than ASCII have no place in a field"
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        yield path, f"{shown(value)}: {error}"
        return
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in TEMPLATE_NAMES or spec or conversion:
            yield path, f"{{{name}}} is none of {', '.join(sorted(TEMPLATE_NAMES))}"


def _action_problems(path: str, action: str) -> Found:
    if not _ACTION.fullmatch(action):
        yield path, f"{shown(action)} is not remove, hash or replace:TEXT"
