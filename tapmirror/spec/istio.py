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

A condition that cannot be seen from the wire (`sourceLabels`, …): the match that has it is left out, with a warning; so
is what a mirror beside the path cannot do to production (`fault`, `retries`, …).
"""

from __future__ import annotations

from typing import Any, Final

from tapmirror.spec.document import Path
from tapmirror.spec.imported import Destination, Importing, host_condition
from tapmirror.spec.match import Match, Text
from tapmirror.spec.sampled import By
from tapmirror.spec.tap import Mirror, Rule

VERSIONS: Final = tuple(f"networking.istio.io/{version}" for version in ("v1", "v1beta1", "v1alpha3"))
BOTH: Final = "HTTP route cannot contain both mirror and mirrors"
"""In Istio's own words (validateHTTPRouteConflict)."""

_ROUTE: Final = frozenset({"name", "match", "route", "mirror", "mirrors", "mirrorPercentage", "mirrorPercent"})
_UNSEEN: Final = {
    "scheme": "is not seen in requests of HTTP/1",
    "port": "what is tapped is said by --port",
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
    for name in route:
        if name not in _ROUTE:
            reading.left_out((*path, name), "is for the proxy in the path and has no effect on the copies")
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
        shadow = reading.shadow(to, place) if to is not None and percent else None
        if shadow is not None and shadow not in [mirror.shadow for mirror in taken]:
            taken.append(Mirror(shadow=shadow, percent=percent, by=By.REQUEST))
    matches = _matches(reading, route, path, hosts)
    if matches is None:
        return None
    return Rule(name=reading.text(route.get("name"), (*path, "name")), match=matches, mirror=tuple(taken))


def _destination(reading: Importing, data: Any, path: Path, subsets: dict[str, set[str]]) -> Destination | None:
    found = reading.mapping(data, path)
    host = reading.text(found.get("host"), (*path, "host"))
    if not host:
        reading.wrong(path, "host is missing")
        return None
    subset = reading.text(found.get("subset"), (*path, "subset"))
    if subset and host in subsets and subset not in subsets[host]:
        reading.wrong((*path, "subset"), f"the DestinationRule of {host} has no subset {subset}")
    port = reading.number(reading.mapping(found.get("port"), (*path, "port")).get("number"), (*path, "port", "number"))
    return Destination(host, subset, int(port) if port is not None else None)


def _matches(
    reading: Importing, route: dict[str, Any], path: Path, hosts: list[Text | None]
) -> tuple[Match, ...] | None:
    """Each alternative with each host; None if all had to be left out."""
    conditions: list[dict[str, Any]] = []
    entries = list(reading.items(route.get("match"), (*path, "match")))
    for place, entry in entries:
        found = _conditions(reading, reading.mapping(entry, place), place)
        if found is not None:
            conditions.append(found)
    if entries and not conditions:
        return None
    return tuple(Match(host=host, **each) for host in hosts for each in conditions or [{}])


def _conditions(reading: Importing, entry: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The conditions of one alternative as fields of `Match`; None if one of them is not seen here."""
    for name in entry:
        if name not in _MATCH:
            why = _UNSEEN.get(name, "is not known here")
            reading.left_out((*path, name), f"{why}; this match is left out")
            return None
    found: dict[str, Any] = {}
    headers: dict[str, Text] = {}
    if entry.get("uri"):
        ignore = entry.get("ignoreUriCase") is True
        found["path"] = _text(reading, entry["uri"], (*path, "uri"), ignore_case=ignore)
    if entry.get("method"):
        method = reading.mapping(entry["method"], (*path, "method"))
        if set(method) != {"exact"}:
            reading.left_out((*path, "method"), "only exact methods are taken; this match is left out")
            return None
        found["methods"] = (reading.text(method["exact"], (*path, "method", "exact")),)
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
    return reading.condition(path, **found, ignore_case=ignore_case, invert=invert)
