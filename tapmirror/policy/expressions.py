# SPDX-License-Identifier: Apache-2.0
"""Many regular expressions on one part of a request, looked for all at once.

One call of RE2 costs 0.8 us from Python, whatever it looks for, and RE2 can look for many expressions as one automaton
(RE2::Set).  So everything that rules and shadows look for in one subject (the path, a header) is found when the first
of them asks, and kept until the request is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from tapmirror.policy.request import Request
    from tapmirror.spec import Match, Text

Subject: TypeAlias = Hashable
"""The part of a request that is searched: "path", ("header", b"x-user")."""
Reader: TypeAlias = "Callable[[Request], bytes | None]"
"""Reads a subject's value from a request; None: the request has none."""

FEW: Final = 2
"""From this many expressions on one subject on, they are looked for together; fewer are tried one by one."""
MOST: Final = 256
"""Most expressions in one automaton: a larger one may not fit into RE2's memory (8 MiB)."""
_ALWAYS: Final = b"(?s:.*)"


class Expressions:
    """The expressions of all matches of a policy."""

    def __init__(self, matches: Iterable[Match] = ()) -> None:
        wanted: dict[Subject, list[bytes]] = {}
        for subject, text in (found for match in matches for found in _texts(match)):
            # Others are in UTF-8, and an automaton is in one encoding (`match.compile_re2`).
            if text is not None and text.regex is not None and text.regex.isascii():
                expressions = wanted.setdefault(subject, [])
                if _bytes(text) not in expressions:
                    expressions.append(_bytes(text))
        self._places: dict[tuple[Subject, bytes], tuple[_Automaton, int]] = {}
        for subject, expressions in wanted.items():
            for start in range(0, len(expressions), MOST):
                part = expressions[start : start + MOST]
                automaton = _Automaton.made(part) if len(part) >= FEW else None
                if automaton is not None:
                    self._places |= {(subject, each): (automaton, i + 1) for i, each in enumerate(part)}

    def check(self, subject: Subject, text: Text, read: Reader) -> Callable[[Request], bool] | None:
        """A function that tells whether the condition holds; None: it is not among those that are looked for
        together.
        """
        if text.regex is None:
            return None
        automaton, number = self._places.get((subject, _bytes(text)), (None, 0))
        if automaton is None:
            return None
        known = automaton

        def check(request: Request) -> bool:
            if known.request is not request:
                known.look(request, read(request))
            return number in known.found

        return (lambda request: not check(request)) if text.invert else check


class _Automaton:
    """Some expressions on one subject."""

    __slots__ = ("_one_by_one", "_set", "found", "request")

    def __init__(self, expressions: list[bytes]) -> None:
        import re2

        self._set = re2.Set.FullMatchSet(_options(re2))
        for each in (_ALWAYS, *expressions):
            self._set.Add(each)
        self._set.Compile()
        self._one_by_one = expressions
        self.request: Request | None = None
        """The request that `found` is about."""
        self.found: list[int] = []
        """Numbers of the expressions that match, from 1 on; 0 is always there."""

    @classmethod
    def made(cls, expressions: list[bytes]) -> _Automaton | None:
        """The automaton; None: the expressions are too much for one."""
        import re2

        try:
            return cls(expressions)
        except re2.error:
            return None

    def look(self, request: Request, value: bytes | None) -> None:
        """Find all expressions that match the value."""
        self.request = request
        self.found = [] if value is None else self._set.Match(value)
        if value is not None and 0 not in self.found:
            # RE2 gave up because it has no memory left: even the expression that always matches is missing.
            self.found = self._tried(value)

    def _tried(self, value: bytes) -> list[int]:
        import re2

        options = _options(re2)
        return [
            i + 1 for i, each in enumerate(self._one_by_one) if re2.compile(each, options).fullmatch(value) is not None
        ]


def _options(re2: Any) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.encoding = re2.Options.Encoding.LATIN1
    return options


def _bytes(text: Text) -> bytes:
    expression = (text.regex or "").encode()
    return b"(?i:%b)" % expression if text.ignore_case else expression


def _texts(match: Match) -> Iterator[tuple[Subject, Text | None]]:
    """All conditions on texts, each with its subject, as `policy.match` names it."""
    yield from (("path", match.path), ("target", match.target), ("host", match.host))
    yield from ((("header", name.lower()), text) for name, text in match.headers.items())
    yield from ((("query", name), text) for name, text in match.query.items())
    yield from ((("cookie", name), text) for name, text in match.cookies.items())
