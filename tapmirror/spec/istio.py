# SPDX-License-Identifier: Apache-2.0
"""Istio's VirtualService (networking.istio.io, v1, v1beta1, v1alpha3) as rules.

Semantics, from Istio's reference of `HTTPRoute` and pilot's translation to Envoy:

* The first route that matches has the request, whether it mirrors or not; without `match` it is every request.
* The entries of `match` are alternatives; the conditions of one must all hold.
* `mirrorPercentage` absent is 100 %, 0 is none; `mirrorPercent` is its deprecated form. Each request is decided
  by itself.
* `mirror` and `mirrors` together are refused.
* The copy's Host gets `-shadow`.
* Regular expressions are RE2's and match the whole; paths are compared without the query.

* A route that answers by itself (`redirect`, `directResponse`) has no mirror: nothing is sent anywhere.
* `ignoreUriCase` counts for exact and prefix only.

What is tapped is plain HTTP at known ports: `scheme` is compared with `http`, and `port` with the tap's, if it has
only one.

A condition that cannot be seen from the wire (`sourceLabels`, …): the match that has it is left out, with a warning; so
is what a mirror beside the path cannot do to production (`fault`, `retries`, …), and what Istio's proxy does to a
request before it copies it (`rewrite`, `headers`): rewrites here are a shadow's, whatever the route.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tapmirror.spec.document import Path
from tapmirror.spec.errors import shown
from tapmirror.spec.imported import ANSWERS, BESIDE, CHANGES, Destination, Importing, host_condition
from tapmirror.spec.match import Match, Text
from tapmirror.spec.sampled import By
from tapmirror.spec.tap import Mirror, Rule

VERSIONS: Final = tuple(f"networking.istio.io/{version}" for version in ("v1", "v1beta1", "v1alpha3"))
BOTH: Final = "HTTP route cannot contain both mirror and mirrors"
"""The message in Istio's own words (validateHTTPRouteConflict)."""

_ANSWERS: Final = ("redirect", "directResponse")
_OF_THE_PROXY: Final = {
    **dict.fromkeys(("timeout", "retries", "fault", "corsPolicy"), BESIDE),
    "rewrite": CHANGES,
    "delegate": "stands for the routes of another VirtualService, which are not taken",
}
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
"""RFC 9110, 9.3, and RFC 5789: those that a pattern for methods may stand for."""
_ROUTE: Final = frozenset(
    {"name", "match", "route", "headers", "mirror", "mirrors", "mirrorPercentage", "mirrorPercent"}
)
_UNSEEN: Final = {
    "scheme": "what is tapped is plain HTTP",
    "port": "is not the one port that is tapped",
    "sourceLabels": "labels of the client's pod are not seen at an interface",
    "sourceNamespace": "the client's namespace is not seen at an interface",
    "gateways": "which gateway a request came by is not seen at an interface",
}
_MATCH: Final = frozenset(
    {"name", "uri", "method", "authority", "headers", "withoutHeaders", "queryParams", "ignoreUriCase", "statPrefix"}
)


def rules_of(reading: Importing, subsets: dict[str, set[str]]) -> list[Rule]:
    """The rules of a VirtualService.  `subsets`: by host, of the DestinationRules of the same file."""
    data = reading.mapping(reading.document.data, ())
    spec = reading.mapping(data.get("spec"), ("spec",))
    metadata = reading.mapping(data.get("metadata"), ("metadata",))
    namespace = reading.text(metadata.get("namespace"), ("metadata", "namespace"), default="default")
    hosts: list[Text | None] = []
    for path, host in reading.items(spec.get("hosts"), ("spec", "hosts")):
        condition = host_condition(reading.text(host, path), namespace)
        hosts.append(None if condition is None else reading.condition(path, **condition))
    if not hosts:
        reading.wrong(("spec",), "hosts is missing")
    for name in ("mirror", "mirrors", "mirrorPercentage", "mirrorPercent"):
        if name in spec:  # as Istio's own page once had it; Kubernetes takes such a field away without a word
            reading.wrong(("spec", name), "belongs to a route of http: indent it by one level more")
    for name in ("tcp", "tls"):
        if spec.get(name):
            reading.left_out(("spec", name), "only http routes are taken")
    if spec.get("gateways") not in (None, ["mesh"]):
        reading.left_out(("spec", "gateways"), _UNSEEN["gateways"])
    rules: list[Rule] = []
    for path, route in reading.items(spec.get("http"), ("spec", "http")):
        rule = _rule(reading, reading.mapping(route, path), path, hosts, subsets)
        if rule is not None:
            rules.append(rule)
    return rules


def subsets_of(reading: Importing) -> tuple[str, set[str]]:
    """(host, names of its subsets) of a DestinationRule."""
    spec = reading.mapping(reading.mapping(reading.document.data, ()).get("spec"), ("spec",))
    names = set()
    for path, subset in reading.items(spec.get("subsets"), ("spec", "subsets")):
        names.add(reading.text(reading.mapping(subset, path).get("name"), (*path, "name")))
    return reading.text(spec.get("host"), ("spec", "host")), names


def _rule(
    reading: Importing, route: dict[str, Any], path: Path, hosts: list[Text | None], subsets: dict[str, set[str]]
) -> Rule | None:
    """One route; None if nothing can match it."""
    answers = next((name for name in _ANSWERS if route.get(name)), None)
    if answers is not None:
        reading.left_out((*path, answers), ANSWERS)
    for name in route:
        if name not in _ROUTE and name not in _ANSWERS:
            reading.left_out((*path, name), _OF_THE_PROXY.get(name, "no such field is known here"))
    _headers(reading, route, path)
    for place, destination in reading.items(route.get("route"), (*path, "route")):
        _headers(reading, reading.mapping(destination, place), place)
    if route.get("mirror") and route.get("mirrors"):
        reading.wrong(path, BOTH)
    mirrors = []
    if route.get("mirror"):
        share: Any = reading.mapping(route.get("mirrorPercentage"), (*path, "mirrorPercentage")).get("value", 0.0)
        share_path: Path = (*path, "mirrorPercentage", "value")
        if route.get("mirrorPercentage") is None:
            share, share_path = route.get("mirrorPercent"), (*path, "mirrorPercent")
        mirrors.append((route["mirror"], (*path, "mirror"), share, share_path))
    for place, entry in reading.items(route.get("mirrors"), (*path, "mirrors")):
        one = reading.mapping(entry, place)
        share = None
        if one.get("percentage") is not None:
            share = reading.mapping(one["percentage"], (*place, "percentage")).get("value", 0.0)
        mirrors.append((one.get("destination"), (*place, "destination"), share, (*place, "percentage", "value")))
    taken: list[Mirror] = []
    for destination, place, share, share_path in mirrors:
        percent = reading.percent(reading.number(share, share_path), share_path)
        to = _destination(reading, destination, place, subsets)
        if to is None or answers is not None:
            continue
        if not percent:
            reading.off.append((to, place))
            continue
        shadow = reading.shadow(to, place)
        if shadow is not None and shadow not in [mirror.shadow for mirror in taken]:
            taken.append(Mirror(shadow=shadow, percent=percent, by=By.REQUEST))
    matches = _matches(reading, route, path, hosts)
    if matches is None:
        return None
    return Rule(name=reading.text(route.get("name"), (*path, "name")), match=matches, mirror=tuple(taken))


def _headers(reading: Importing, data: dict[str, Any], path: Path) -> None:
    """Report header fields that the route changes; changes to responses do not matter to a copy."""
    where = (*path, "headers")
    if reading.mapping(data.get("headers"), where).get("request"):
        reading.left_out((*where, "request"), CHANGES)


def _destination(reading: Importing, data: Any, path: Path, subsets: dict[str, set[str]]) -> Destination | None:
    found = reading.mapping(data, path)
    host = reading.text(found.get("host"), (*path, "host"))
    if not host:
        reading.wrong(path, "host is missing")
        return None
    subset = reading.text(found.get("subset"), (*path, "subset"))
    if subset and host in subsets and subset not in subsets[host]:
        reading.wrong((*path, "subset"), f"the DestinationRule of {host} has no subset {subset}")
    port = reading.port(reading.mapping(found.get("port"), (*path, "port")).get("number"), (*path, "port", "number"))
    return Destination(host, subset, port)


def _matches(
    reading: Importing, route: dict[str, Any], path: Path, hosts: list[Text | None]
) -> tuple[Match, ...] | None:
    """Each alternative with each host; None if all had to be left out."""
    conditions: list[dict[str, Any]] = []
    entries = list(reading.items(route.get("match"), (*path, "match")))
    for place, entry in entries:
        wanted = _conditions(reading, reading.mapping(entry, place), place)
        if wanted is not None:
            conditions.append(wanted)
    if entries and not conditions:
        return None
    found = [reading.match((*path, "match"), host=host, **each) for host in hosts for each in conditions or [{}]]
    return tuple(match for match in found if match is not None)


def _conditions(reading: Importing, entry: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The conditions of one alternative as fields of `Match`; None if a tap cannot see what one of them asks for."""
    for name, value in entry.items():
        if name in _MATCH or (name in _KNOWN_HERE and _KNOWN_HERE[name](reading, value, (*path, name))):
            continue
        why = _UNSEEN.get(name, "is not known here")
        reading.left_out((*path, name), f"{why}; this match is left out")
        return None
    found: dict[str, Any] = {}
    headers: dict[str, Text] = {}
    if entry.get("uri"):
        ignore = entry.get("ignoreUriCase") is True
        found["path"] = _text(reading, entry["uri"], (*path, "uri"), ignore_case=ignore)
    if entry.get("method"):
        place = (*path, "method")
        exact = reading.mapping(entry["method"], place).get("exact")
        if exact is not None:
            found["methods"] = (reading.text(exact, (*place, "exact")),)
        else:
            found["methods"] = tuple(name for name in _METHODS if _holds(reading, entry["method"], place, name))
            if not found["methods"]:
                reading.left_out(place, "no method of HTTP is such; this match is left out")
                return None
    if entry.get("authority"):
        headers["Host"] = _text(reading, entry["authority"], (*path, "authority")) or Text(present=True)
    for group, invert in (("headers", False), ("withoutHeaders", True)):
        for name, text in reading.mapping_as_it_is(entry.get(group), (*path, group)).items():
            condition = _text(reading, text, (*path, group, name), invert=invert)
            if condition is not None:
                headers["Host" if name == ":authority" else name] = condition
    parameters = reading.mapping_as_it_is(entry.get("queryParams"), (*path, "queryParams"))
    query = {name: _text(reading, text, (*path, "queryParams", name)) for name, text in parameters.items()}
    return {**found, "headers": headers, "query": {name: text for name, text in query.items() if text is not None}}


def _text(reading: Importing, data: Any, path: Path, *, ignore_case: bool = False, invert: bool = False) -> Text | None:
    """Istio's StringMatch; empty: it is there."""
    found = reading.mapping(data, path)
    if not found:
        return Text(present=not invert)
    unknown = set(found) - {"exact", "prefix", "regex"}
    if unknown or len(found) != 1:
        reading.wrong(path, "needs one of exact, prefix, regex")
        return None
    ((name, value),) = found.items()
    if not isinstance(value, str):
        reading.wrong((*path, name), f"{shown(value)} is not a text")
        return None
    ignore_case = ignore_case and "regex" not in found
    return reading.condition(path, **found, ignore_case=ignore_case, invert=invert)


def _holds(reading: Importing, data: Any, path: Path, value: str) -> bool:
    """Whether a StringMatch holds for a text that is already known when the file is read."""
    text = _text(reading, data, path)
    if text is None:
        return False
    if text.regex is not None:
        import re2  # as in `match`: only who uses expressions pays

        return re2.fullmatch(text.regex, value) is not None
    return bool(text.present) or text.exact == value or (text.prefix is not None and value.startswith(text.prefix))


_KNOWN_HERE: Final[dict[str, Callable[[Importing, Any, Path], bool]]] = {
    "scheme": lambda reading, data, path: _holds(reading, data, path, "http"),
    "port": lambda reading, data, path: [data] == reading.ports,
}
"""Conditions on what all requests of a tap have in common."""
