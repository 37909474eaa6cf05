# SPDX-License-Identifier: Apache-2.0
"""`Match` as a function of a request.

Texts are compared as the bytes that were sent (ISO 8859-1 for what is not ASCII).  Regular expressions are those of
RE2, whose time is linear in the length of the input, whatever a client sends.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from tapmirror.policy.expressions import Expressions, Reader, Subject
from tapmirror.policy.request import Request
from tapmirror.spec import Match, Text

Check: TypeAlias = Callable[[Request], bool]
TextCheck: TypeAlias = Callable[[bytes | None], bool]

NONE: Final = Expressions()
_V4: Final = bytes(10) + b"\xff\xff"


def matcher(matches: Iterable[Match], expressions: Expressions = NONE) -> Check | None:
    """A function that tells whether one of the matches holds; None: there are none, so every request matches.
    `expressions` are looked for together; they are those of these matches and of others.
    """
    checks = [_all_of(match, expressions) for match in matches]
    if not checks or any(check is None for check in checks):
        return None
    if len(checks) == 1:
        return checks[0]
    known = [check for check in checks if check is not None]
    return lambda request: any(check(request) for check in known)


def _all_of(match: Match, expressions: Expressions) -> Check | None:
    """A function that tells whether all conditions of a match hold; None: it has none.  The cheap ones are tried
    first.
    """

    def of(subject: Subject, text: Text, read: Reader) -> Check:
        found = expressions.check(subject, text, read)
        return found if found is not None else _of_value(text_check(text), read)

    checks: list[Check] = []
    if match.methods:
        checks.append(_methods(match.methods))
    if match.path is not None:
        checks.append(_prefix(match.path) or of("path", match.path, lambda request: request.path))
    if match.target is not None:
        checks.append(of("target", match.target, lambda request: request.target))
    if match.clients:
        checks.append(clients(match.clients))
    if match.host is not None:
        checks.append(of("host", match.host, lambda request: request.host))
    for name, text in match.headers.items():
        checks.append(of(("header", name.lower()), text, _field(name.lower().encode())))
    for name, text in match.query.items():
        checks.append(of(("query", name), text, _parameter(name.encode())))
    for name, text in match.cookies.items():
        checks.append(of(("cookie", name), text, _cookie(name.encode())))
    if match.body is not None:
        checks.append(_size(match.body.min, match.body.max))
    if len(checks) < 2:
        return checks[0] if checks else None
    if len(checks) == 2:
        first, second = checks
        return lambda request: first(request) and second(request)
    return lambda request: all(check(request) for check in checks)


def text_check(text: Text) -> TextCheck:
    """The condition as a function of a value, which is None if the request does not have it."""
    check = _plain_check(text)
    if text.invert:
        return lambda value: not check(value)
    return check


def _plain_check(text: Text) -> TextCheck:
    if text.present is not None:
        wanted = text.present
        return lambda value: (value is not None) is wanted
    if text.regex is not None:
        full = compile_re2(text.regex, text.ignore_case).fullmatch
        return lambda value: value is not None and full(value) is not None
    literal = next(each for each in (text.exact, text.prefix, text.suffix) if each is not None).encode()
    if text.ignore_case:
        literal = literal.lower()
    check: TextCheck
    if text.exact is not None:

        def check(value: bytes | None) -> bool:
            return value == literal
    elif text.prefix is not None:

        def check(value: bytes | None) -> bool:
            return value is not None and value.startswith(literal)
    else:

        def check(value: bytes | None) -> bool:
            return value is not None and value.endswith(literal)

    if text.ignore_case:
        return lambda value: value is not None and check(value.lower())
    return check


def compile_re2(text: str, ignore_case: bool = False) -> re.Pattern[bytes]:
    """Compile an expression for bytes, which need not be UTF-8 if the expression is ASCII."""
    import re2

    options = re2.Options()
    options.log_errors = False
    if text.isascii():
        options.encoding = re2.Options.Encoding.LATIN1
    options.case_sensitive = not ignore_case
    pattern: re.Pattern[bytes] = re2.compile(text.encode(), options)
    return pattern


def compile_text(text: str) -> re.Pattern[str]:
    """Compile an expression for text."""
    import re2

    options = re2.Options()
    options.log_errors = False
    pattern: re.Pattern[str] = re2.compile(text, options)
    return pattern


def clients(networks: Iterable[str]) -> Check:
    """A function that tells whether the client is in one of the networks."""
    ranges: list[tuple[bytes, bytes]] = []
    for text in networks:
        network = ipaddress.ip_network(text)
        front = _V4 if network.version == 4 else b""
        ranges.append((front + network.network_address.packed, front + network.broadcast_address.packed))
    return lambda request: any(low <= request.client <= high for low, high in ranges)


def _methods(methods: Iterable[str]) -> Check:
    wanted = frozenset(method.encode() for method in methods)
    return lambda request: request.method in wanted


def _prefix(text: Text) -> Check | None:
    """A function that tells whether the path begins with this.  It is the most frequent condition, and needs one call
    less in this way.
    """
    if text.prefix is None or text.ignore_case or text.invert:
        return None
    prefix = text.prefix.encode()
    return lambda request: request.path.startswith(prefix)


def _of_value(check: TextCheck, read: Reader) -> Check:
    return lambda request: check(read(request))


def _field(name: bytes) -> Reader:
    return lambda request: request.fields.get(name)


def _parameter(name: bytes) -> Reader:
    return lambda request: request.parameters.get(name)


def _cookie(name: bytes) -> Reader:
    return lambda request: request.cookies.get(name)


def _size(least: int, most: int | None) -> Check:
    def check(request: Request) -> bool:
        length = request.length
        return length is not None and length >= least and (most is None or length <= most)

    return check
