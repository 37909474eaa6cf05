# SPDX-License-Identifier: Apache-2.0
"""One `server` of nginx: where it listens, by which names, and what its locations mirror."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from tapmirror.spec.errors import shown
from tapmirror.spec.nginx_syntax import Directive
from tapmirror.spec.nginx_values import Text, holds, host_port
from tapmirror.spec.translated import searched

Scope: TypeAlias = tuple[Directive, ...]
"""A block and those that it is in, the outermost first."""
Missing: TypeAlias = Callable[[int, str, str], None]
"""Called with line, directive and what has no equivalent."""
Place: TypeAlias = tuple[Text | None, tuple[str, ...]]
"""A condition on the path, and the mirrors of what it holds for."""


class Server:
    """One server block: where it listens, by which names, and what its locations mirror."""

    def __init__(self, block: Directive, outer: Scope, missing: Missing) -> None:
        self.line = block.line
        self._missing = missing
        self._scope: Scope = (*outer, block)
        self._locations = list(_flat(self._scope))
        self.names = [name for each in block.all("server_name") for name in each.args]
        self.ports: list[int] = []
        self.addrs: list[str] = []
        """Address of each port; empty: any."""
        self.default = False
        for each in block.all("listen"):
            self._listen(each)
        if not block.all("listen"):
            self.ports, self.addrs = [80], [""]

    def _listen(self, each: Directive) -> None:
        text = each.args[0] if each.args else ""
        options = set(each.args[1:])
        self.default |= bool(options & {"default_server", "default"})
        if text.startswith("unix:") or not text:
            self._missing(each.line, "listen", f"{shown(text)} is not TCP: it passes no interface")
            return
        hidden = options & {"ssl", "quic", "proxy_protocol"}
        if hidden:
            why = "begins with a line of its own" if hidden == {"proxy_protocol"} else "is encrypted at the interface"
            self._missing(each.line, "listen", f"{text} {hidden.pop()}: {why}; it cannot be tapped here")
            return
        host, port = ("", int(text)) if text.isdecimal() else host_port(text, 80)
        try:
            any_address = host in ("", "*") or ipaddress.ip_address(host).is_unspecified
        except ValueError:
            self._missing(each.line, "listen", f"{shown(host)} is a name: the tap is at all addresses")
            any_address = True
        self.ports.append(port)
        self.addrs.append("" if any_address else host)

    @property
    def order(self) -> int:
        """Rank of the server's names: nginx looks at exact ones first, and at expressions last."""
        return min((_kind(name) for name in self.names), default=9)

    def hosts(self) -> Iterator[Text]:
        """Conditions on Host, one of which must hold."""
        for name in self.names:
            if name in ("", "_"):
                continue
            if name.startswith("~"):
                try:
                    yield searched(name[1:])
                except ValueError as error:
                    self._missing(self.line, "server_name", f"{error}; it is left out")
            elif name.startswith("*."):
                yield {"suffix": name[1:].lower()}
            elif name.startswith("."):
                yield {"suffix": name.lower()}
                yield {"exact": name[1:].lower()}
            elif name.endswith(".*"):
                yield {"prefix": name[:-1].lower()}
            else:
                yield {"exact": name.lower()}

    def mirrors(self) -> list[str]:
        """All URIs that something is mirrored to."""
        return list(dict.fromkeys(uri for _, uris in self._all() for uri in uris))

    def copies(self, uri: str) -> int:
        """How many times a request is sent to a URI."""
        found = {uris.count(uri) for _, uris in self._all()} - {0}
        if len(found) > 1:
            self._missing(self.line, "mirror", f"{uri}: twice in some locations; once in all here")
        return found.pop() if len(found) == 1 else 1

    def bodies_off(self, uri: str) -> bool:
        """Whether requests are sent to a URI without their bodies."""
        return any(uri in uris and one(scope, "mirror_request_body") == "off" for scope, uris in self._all())

    def _all(self) -> list[tuple[Scope, list[str]]]:
        places = [scope for scope in self._locations if not scope[-1].all("internal")]
        return [(scope, mirrors(scope)) for scope in [*places, self._scope]]

    def places(self) -> list[Place]:
        """(condition on the path, mirrors), in the order in which nginx looks for a location."""
        exact: list[Place] = []
        first: list[tuple[str, tuple[str, ...]]] = []
        tried: list[Place] = []
        prefixes: list[tuple[str, tuple[str, ...]]] = []
        for scope, uris in self._all()[:-1]:
            location = scope[-1]
            modifier, pattern = ("", location.args[0]) if len(location.args) == 1 else tuple(location.args[:2])
            entry = (pattern, tuple(uris))
            if modifier == "=":
                exact.append(({"exact": pattern}, tuple(uris)))
            elif modifier in ("~", "~*"):
                try:
                    text = searched(pattern)
                except ValueError as error:
                    self._missing(location.line, "location", f"{error}; the location is left out")
                    continue
                tried.append(({**text, **({"ignore_case": True} if modifier == "~*" else {})}, tuple(uris)))
            elif modifier in ("", "^~"):
                (first if modifier else prefixes).append(entry)
        for under, _ in prefixes:
            if tried and any(under.startswith(over) for over, _ in first):
                said = f"{under} lies within a ^~ location: expressions are tried after it here"
                self._missing(self.line, "location", said)
        ordered: list[Place] = [*exact, *_longest(first), *tried, *_longest(prefixes)]
        if not ordered or ordered[-1][0] is not None:
            ordered.append((None, tuple(mirrors(self._scope))))
        return ordered

    def location(self, uri: str) -> Scope | None:
        """The location that a subrequest for a URI gets to."""
        best: Scope | None = None
        for scope in self._locations:
            args = scope[-1].args
            if args[0] == "=" and args[-1] == uri:
                return scope
            if (len(args) == 1 or args[0] == "^~") and uri.startswith(args[-1]) and not args[0].startswith("@"):
                best = scope if best is None or len(args[-1]) > len(best[-1].args[-1]) else best
        if best is not None and best[-1].args[0] == "^~":
            return best
        for scope in self._locations:
            args = scope[-1].args
            if args[0] in ("~", "~*"):
                try:
                    text = searched(args[-1])
                except ValueError:
                    continue
                if holds(text, uri):
                    return scope
        return best


def inherited(scope: Scope, name: str) -> list[Directive]:
    """The directives of the innermost level that has any."""
    return next((found for block in reversed(scope) if (found := block.all(name))), [])


def one(scope: Scope, name: str) -> str | None:
    """The value of a directive that may be inherited; None: it is not given."""
    found = inherited(scope, name)
    return found[-1].args[0] if found and found[-1].args else None


def _flat(scope: Scope) -> Iterator[Scope]:
    """All locations of a server, those within others too."""
    for each in scope[-1].all("location"):
        if each.args and each.block is not None and not each.args[0].startswith("@"):
            yield (*scope, each)
            yield from _flat((*scope, each))


def mirrors(scope: Scope) -> list[str]:
    """The URIs that requests of a level are mirrored to."""
    found = [each.args[0] for each in inherited(scope, "mirror") if each.args]
    return [] if "off" in found else found


def _longest(entries: Iterable[tuple[str, tuple[str, ...]]]) -> list[Place]:
    """Prefixes, the longest first; `/` is every path."""
    ordered = sorted(entries, key=lambda entry: -len(entry[0]))
    return [(None if prefix == "/" else {"prefix": prefix}, uris) for prefix, uris in ordered]


def _kind(name: str) -> int:
    return 3 if name.startswith("~") else 1 if name.startswith(("*", ".")) else 2 if name.endswith("*") else 0
