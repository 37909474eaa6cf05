# SPDX-License-Identifier: Apache-2.0
"""Which endpoint of the application a request is for: its method and the template of its path.

If operations share a path (`operations`), the name of the operation is added.

Theory of operation
-------------------
Given templates are tried first.  Others are learned: a segment that looks like an identifier is `{id}`, and if many
different words are seen at one place of a path, the rare ones are `{id}` too.  So names in paths become one endpoint,
while frequent words at the same place stay as they are.  Endpoints with a word that became `{id}` later are renamed
(`fold`), in the states of all workers.

How many words are too many depends on the room.  A service with forty resources has forty words at one place, and so
have the first forty names of something.  They are kept apart as long as there is room; when there is none, the place
with most words makes room.

A good client has a closed set of operations, so each is an endpoint, up to a share of all endpoints.  Further ones are
`{operation}`.  When there were many of those, operations that were rarely seen since the last time make room for
others.  So names that an attacker invents stay only as long as he continues with each.  What looks like an identifier
in the name of an operation is `{id}` too.

What clients send is hostile: a scan of random paths must cost neither memory nor the names of real endpoints.  The tree
of words, the cache and the endpoints are bounded; everything beyond the bound is `OTHER`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

from tapmirror.compare.words import shortened, variable

OTHER: Final = "other"
"""Name of the endpoint for everything beyond the bound."""
HOLE: Final = "{id}"
OPERATION: Final = "{operation}"
"""In place of any operation, at a path that has too many."""
TOLD: Final = 0.75
"""Share of the endpoints that operations may take; the rest is for other paths."""
SELDOM: Final = 10
"""An operation with fewer requests is rare, and makes room when enough requests were `{operation}`: `BEYOND` of them,
and twice as many each time, up to `MOST_BEYOND`."""
BEYOND: Final = 1000
MOST_BEYOND: Final = 16_000
WORDS: Final = 64
"""Most different words at one place: more are not routes but names."""
FEW: Final = 24
"""Most words at one place when there is no room for more endpoints; otherwise `WORDS`."""
FREQUENT: Final = 0.01
"""Share of the requests at a place that a word needs to stay when there are too many words."""
SEGMENTS: Final = 8
"""Most segments of a path that distinguish endpoints."""
CACHED: Final = 4096
CACHED_LENGTH: Final = 512
"""Most bytes of a path that is looked up in the cache; longer ones come from scanners."""
METHODS: Final = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND", b"REPORT"}
)

Places: TypeAlias = dict[str, list[str]]
"""For each place with too many words, by the path before it as in names of endpoints: the words that stay as they are.
For an endpoint with too many operations, by its name and a space: the operations that stay."""

_PARTS: Final = re.compile("([/:])")
_NUMBER: Final = re.compile(rb"(?<=/)[0-9]+(?=/|$)").sub
_PARAMETERS: Final = re.compile(rb";[^/]*").sub
"""Parameters of a path's segment (RFC 3986, 3.3): `;jsessionid=…`, which is a secret and no part of a route."""
_A_HOLE: Final = HOLE.encode()
_QUERY: Final = ord("?")
_PARAMETER: Final = ord(";")
"""The byte as a number: looking for bytes in bytes with `in` takes seven times as long, for Python tries to read
them as a number first."""


class _Node:
    __slots__ = ("full", "hits", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Node] = {}
        self.hits = 0
        self.full = False
        """Whether there are too many words here, so that one that is not in `words` counts as `HOLE`."""


class Endpoints:
    """The endpoints of one tap, as far as they have been learned."""

    def __init__(
        self, templates: Iterable[str], limit: int, shown: Callable[[bytes], bytes] = lambda path: path
    ) -> None:
        """`shown` removes what must not be shown from a path."""
        self._shown = shown
        templates = tuple(templates)
        self._given = [_Template(text) for text in templates]
        self._templates = frozenset(templates)
        self._numbers_matter = any(segment.isdigit() for each in self._given for segment in each.segments)
        self._limit = limit
        self._root = _Node()
        self._nodes = 1
        self._wide = False
        """Whether a place has more than `FEW` words."""
        self._names: set[str] = set()
        self._cache: dict[tuple[bytes, bytes], list[Any]] = {}  # [name, requests since it was settled, words]
        self._operations: dict[str, dict[str, list[Any]]] = {}  # by endpoint, what was called for: [name, requests]
        self._told = 0
        """How many operations are kept apart, of all endpoints."""
        self._holes: set[str] = set()
        """Endpoints with more operations than are kept apart."""
        self._beyond = 0
        self._patience = BEYOND
        """After this many requests with `{operation}`, rare operations make room."""
        self.learned = 0
        """Grows when names that were seen before have changed: then `fold` them."""

    def name(self, method: bytes, target: bytes, operation: str = "") -> str:
        """The endpoint's name: `GET /users/{id}`, `POST /graphql getUser`."""
        found = self._path(method, target)
        return self._called(found, operation) if operation and found != OTHER else found

    def _path(self, method: bytes, target: bytes) -> str:
        path = target.partition(b"?")[0] if _QUERY in target else target
        if _PARAMETER in path:
            path = _PARAMETERS(b"", path)
        found = self._cache.get((method, path))
        if found is None and not self._numbers_matter:  # the most frequent identifiers, which would fill it
            path = _NUMBER(_A_HOLE, path)
            found = self._cache.get((method, path))
        if found is not None:
            found[1] += 1
            return found[0]  # type: ignore[no-any-return]
        name, words = self._find(method, path)
        if len(path) > CACHED_LENGTH:
            return name
        if len(self._cache) >= CACHED:
            self._settle()
        self._cache[method, path] = [name, 0, words]
        return name

    def places(self) -> Places:
        """The places with too many words, and the words that are still kept apart there; for `fold`."""
        found: Places = {}
        rest = [("", self._root)]
        while rest:
            place, node = rest.pop()
            if node.full:
                found[place] = [word for word in node.words if word != HOLE]
            rest += [(f"{place}/{word}", child) for word, child in node.words.items() if child.words]
        for name in self._holes:
            found[f"{name} "] = [full[len(name) + 1 :] for full, _ in self._operations[name].values()]
        return found

    def _settle(self) -> None:
        """Count the requests that the cache answered at their places in the tree, and empty the cache."""
        for _, hits, words in self._cache.values():
            if not hits:
                continue
            node: _Node | None = self._root
            for word in words:
                if node is None:
                    break
                node.hits += hits
                node = node.words.get(word) or node.words.get(HOLE)
            if node is not None:
                node.hits += hits
        self._cache.clear()

    def _find(self, method: bytes, path: bytes) -> tuple[str, list[str]]:
        """The name, and the words of the path; no words if a given template matches."""
        verb = method.decode() if method in METHODS else "OTHER"
        segments = _segments(path)
        for template in self._given:
            if template.matches(verb, segments):
                return self._admitted(f"{verb} {template.path}"), []
        words = _words(self._shown(path))
        name = self._admitted(f"{verb} /{'/'.join(self._learn(words))}")
        if name == OTHER and self._wide:
            self._narrow_widest()
            name = self._admitted(f"{verb} /{'/'.join(self._learn(words))}")
        return name, words

    def _called(self, name: str, operation: str) -> str:
        """The name of an endpoint's operation."""
        known = self._operations.setdefault(name, {})
        found = known.get(operation)
        if found is None and (plain := _without_identifiers(operation)) != operation:
            operation = plain
            found = known.get(operation)
        if found is None:
            if self._told >= TOLD * self._limit:
                self._holes.add(name)
                self._beyond += 1
                if self._beyond >= self._patience:
                    self._make_room()
                return self._admitted(f"{name} {OPERATION}")
            shown = self._shown(operation.encode()).decode("utf-8", "replace").replace(" ", "_")
            found = known[operation] = [f"{name} {shown}", 0]
            self._told += 1
        found[1] += 1
        return self._admitted(found[0])

    def _make_room(self) -> None:
        """Stop keeping rare operations apart."""
        self._beyond = 0
        self._patience = min(2 * self._patience, MOST_BEYOND)
        before = self._told
        for name, known in self._operations.items():
            kept = {key: [shown, 0] for key, (shown, count) in known.items() if count >= SELDOM}
            self._operations[name] = kept
            if len(kept) < len(known):
                self._told -= len(known) - len(kept)
                self._holes.add(name)
        if self._told < before:
            self.learned += 1
            self._names.clear()

    def _admitted(self, name: str) -> str:
        if name not in self._names:
            if len(self._names) >= self._limit:
                return OTHER
            self._names.add(name)
        return name

    def _learn(self, words: list[str]) -> list[str]:
        node = self._root
        found: list[str] = []
        for word in words:
            node.hits += 1
            child = node.words.get(word)
            if child is None and node.full:
                word = HOLE
                child = node.words.get(HOLE)
            if child is None:
                if self._nodes >= self._limit * FEW:
                    return [*found, "..."]
                child = node.words[word] = _Node()
                self._nodes += 1
                self._wide = self._wide or len(node.words) > FEW
                if len(node.words) > WORDS:
                    self._narrow(node)
                    word = word if word in node.words else HOLE
                    child = node.words[word]
            found.append(word)
            node = child
        node.hits += 1
        return found

    def _narrow_widest(self) -> None:
        """Make room at the place with most words, because there are too many endpoints."""
        wide, rest = [], [self._root]
        while rest:
            node = rest.pop()
            rest += node.words.values()
            if len(node.words) > FEW and not node.full:
                wide.append(node)
        self._wide = len(wide) > 1
        if wide:
            self._narrow(max(wide, key=lambda node: len(node.words)))

    def _narrow(self, node: _Node) -> None:
        """Join the rare words at a place that has too many."""
        self._settle()
        node.full = True
        least = max(10.0, FREQUENT * node.hits)
        kept = {key: child for key, child in node.words.items() if child.hits >= least and key != HOLE}
        hole = node.words.get(HOLE, _Node())
        for key, child in node.words.items():
            if key not in kept and child is not hole:
                hole.hits += child.hits
                self._nodes -= _size(child)
        self._nodes += HOLE not in node.words
        node.words = {**kept, HOLE: hole}
        self.learned += 1
        self._names.clear()  # those still in use come again
        for name in fold(self._operations, self.places(), self._templates):
            self._told -= len(self._operations.pop(name))
            self._holes.discard(name)


def _segments(path: bytes) -> list[str]:
    if b"://" in path[:12]:
        path = b"/" + path.split(b"/", 3)[-1] if path.count(b"/") > 2 else b"/"
    return path.decode("latin-1").split("/")[1:]


def _words(path: bytes) -> list[str]:
    segments = _segments(path)
    words = [HOLE if variable(word) else shortened(word) for word in segments[:SEGMENTS]]
    return [*words, "..."] if len(segments) > SEGMENTS else words


class _Template:
    """`GET /users/{name}/files/{path...}`; without a method for all of them."""

    def __init__(self, text: str) -> None:
        verb, _, path = text.rpartition(" ")
        self.verb = verb
        self.path = path
        self.segments = path.split("/")[1:]

    def matches(self, verb: str, segments: Sequence[str]) -> bool:
        return self.verb in ("", verb) and _covers(self.segments, segments)


def _covers(template: Sequence[str], segments: Sequence[str]) -> bool:
    if template and template[-1].startswith("{") and template[-1].endswith("...}"):
        template = template[:-1]
        if len(segments) <= len(template):
            return False
        segments = segments[: len(template)]
    return len(template) == len(segments) and all(
        want == got or (want.startswith("{") and want.endswith("}") and got != "")
        for want, got in zip(template, segments, strict=True)
    )


def _size(node: _Node) -> int:
    return 1 + sum(map(_size, node.words.values()))


def _without_identifiers(operation: str) -> str:
    """`user.delete/alice@example.com` is `user.delete/{id}`; a plain name, as those of GraphQL are, stays as it is."""
    if operation.isidentifier():
        return operation
    parts = _PARTS.split(operation)
    parts[::2] = [HOLE if variable(part) else _of_words(part) for part in parts[::2]]
    return "".join(parts)


def _of_words(text: str) -> str:
    return ".".join(HOLE if variable(word) else word for word in text.split("."))


def fold(names: Iterable[str], places: Mapping[str, Sequence[str]], given: Set[str] = frozenset()) -> dict[str, str]:
    """New names by old, for names with a word that is not kept apart at its place any more.

    `given` are the templates of the spec; one without a method is for all methods.  A learned name is never used as a
    template, even if it looks like one: otherwise a request for `/5/7` would join all paths of two segments.
    """
    known = {place: {*words} for place, words in places.items()}
    found = {}
    for name in names if known else ():
        verb, _, rest = name.partition(" ")
        path, space, operation = rest.partition(" ")
        folded = f"{verb} {path if path in given or f'{verb} {path}' in given else _folded(path, known)}"
        if space:
            kept = known.get(f"{folded} ")
            folded = f"{folded} {operation if kept is None or operation in kept else OPERATION}"
        if rest and folded != name:
            found[name] = folded
    return found


def _folded(path: str, known: Mapping[str, Set[str]]) -> str:
    """The path with `{id}` for words that are not known at their places.

    Only the first `SEGMENTS` are looked up: no more were learned, and a hostile worker's name may have millions, each
    of which would be looked up together with all before it.
    """
    first, *words = path.split("/", SEGMENTS + 1)
    place = ""
    for word in words[:SEGMENTS]:
        kept = known.get(place)
        place += f"/{word if kept is None or word in kept else HOLE}"
    return "/".join((first + place, *words[SEGMENTS:]))
