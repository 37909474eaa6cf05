# SPDX-License-Identifier: Apache-2.0
"""The Gateway API's HTTPRoute (gateway.networking.k8s.io, v1 and v1beta1) with `RequestMirror`, as rules.

Semantics, from the reference of `HTTPRouteRule` and `HTTPRouteMatch`:

* Of all matches of a route the most specific has the request: an exact path, then the longest prefix, then one
  with a method, then the most headers, then the most query parameters; then the first.
* A rule without matches has every path; `PathPrefix` compares whole elements (`/a` is no prefix of `/ab`).
* `RequestMirror` without `percent` and `fraction` is all; each request is decided by itself.
* A rule that redirects mirrors nothing.
* The copy's Host gets `-shadow`, as Istio's gateway does it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tapmirror.spec.document import Path
from tapmirror.spec.imported import ANSWERS, BESIDE, CHANGES, Destination, Importing, host_condition
from tapmirror.spec.match import Text
from tapmirror.spec.sampled import By
from tapmirror.spec.tap import Mirror, Rule

VERSIONS: Final = tuple(f"gateway.networking.k8s.io/{version}" for version in ("v1", "v1beta1"))

_RULE: Final = frozenset({"name", "matches", "filters", "backendRefs"})
REDIRECT: Final = "RequestRedirect"
_WHY: Final = {"RequestHeaderModifier": CHANGES, "URLRewrite": CHANGES, REDIRECT: ANSWERS}
_MATCH: Final = frozenset({"path", "headers", "queryParams", "method"})
_KINDS: Final = {"Exact": "exact", "RegularExpression": "regex"}


def rules_of(reading: Importing) -> list[Rule]:
    """The rules of an HTTPRoute, the most specific first."""
    data = reading.mapping(reading.document.data, ())
    spec = reading.mapping(data.get("spec"), ("spec",))
    namespace = reading.text(
        reading.mapping(data.get("metadata"), ("metadata",)).get("namespace"),
        ("metadata", "namespace"),
        default="default",
    )
    hosts: list[Text | None] = []
    for path, host in reading.items(spec.get("hostnames"), ("spec", "hostnames")):
        condition = host_condition(reading.text(host, path), namespace)
        hosts.append(None if condition is None else reading.condition(path, **condition))
    found: list[tuple[tuple[int, ...], Rule]] = []
    for path, entry in reading.items(spec.get("rules"), ("spec", "rules")):
        rule = reading.mapping(entry, path)
        for name in rule:
            if name not in _RULE:
                reading.left_out((*path, name), BESIDE)
        for place, backend in reading.items(rule.get("backendRefs"), (*path, "backendRefs")):
            if reading.mapping(backend, place).get("filters"):
                reading.left_out((*place, "filters"), "only filters of a rule are taken")
        mirrors = _mirrors(reading, rule, path, namespace)
        name = reading.text(rule.get("name"), (*path, "name"))
        matches = list(reading.items(rule.get("matches"), (*path, "matches"))) or [(path, {})]
        for place, match in matches:
            read = _match(reading, reading.mapping(match, place), place)
            if read is not None:
                rank, fields = read
                alternatives = [reading.match(place, host=host, **fields) for host in hosts or [None]]
                matching = tuple(each for each in alternatives if each is not None)
                found.append((rank, Rule(name=name, match=matching, mirror=mirrors)))
    found.sort(key=lambda each: each[0])  # stable: of equals the first
    return [rule for _, rule in found]


def _mirrors(reading: Importing, rule: dict[str, Any], path: Path, namespace: str) -> tuple[Mirror, ...]:
    taken: list[Mirror] = []
    filters = rule.get("filters")
    known = filters if isinstance(filters, list) else []
    answered = any(isinstance(each, dict) and each.get("type") == REDIRECT for each in known)
    for place, entry in reading.items(filters, (*path, "filters")):
        one = reading.mapping(entry, place)
        if one.get("type") != "RequestMirror":
            if one.get("type") != "ResponseHeaderModifier":  # what a client gets is nothing to a copy
                reading.left_out((*place, "type"), f"{one.get('type')}: {_WHY.get(str(one.get('type')), BESIDE)}")
            continue
        where = (*place, "requestMirror")
        mirror = reading.mapping(one.get("requestMirror"), where)
        backend = reading.mapping(mirror.get("backendRef"), (*where, "backendRef"))
        host = reading.text(backend.get("name"), (*where, "backendRef", "name"))
        if not host:
            reading.wrong((*where, "backendRef"), "name is missing")
            continue
        space = reading.text(backend.get("namespace"), (*where, "backendRef", "namespace"), default=namespace)
        port = reading.port(backend.get("port"), (*where, "backendRef", "port"))
        percent = _percent(reading, mirror, where)
        full = host if space == namespace else f"{host}.{space}"
        destination = Destination(full, "", port)
        if answered:
            continue
        if not percent:
            reading.off.append((destination, where))
            continue
        name = reading.shadow(destination, where)
        if name is not None and name not in [each.shadow for each in taken]:
            taken.append(Mirror(shadow=name, percent=percent, by=By.REQUEST))
    return tuple(taken)


def _percent(reading: Importing, mirror: dict[str, Any], path: Path) -> float:
    if mirror.get("percent") is not None and mirror.get("fraction") is not None:
        reading.wrong(path, "only one of percent and fraction can be given")
    if mirror.get("fraction") is not None:
        place = (*path, "fraction")
        fraction = reading.mapping(mirror["fraction"], place)
        numerator = reading.number(fraction.get("numerator"), (*place, "numerator")) or 0.0
        denominator = reading.number(fraction.get("denominator", 100), (*place, "denominator")) or 0.0
        if not 0 <= numerator <= denominator or not denominator:
            reading.wrong(place, f"{numerator:g} of {denominator:g} is no fraction")
            return 0.0
        return round(numerator * 100 / denominator, 4)
    return reading.percent(reading.number(mirror.get("percent"), (*path, "percent")), (*path, "percent"))


def _match(reading: Importing, entry: dict[str, Any], path: Path) -> tuple[tuple[int, ...], dict[str, Any]] | None:
    """(rank, fields of `Match`); None if it cannot be had."""
    for name in entry:
        if name not in _MATCH:
            reading.left_out((*path, name), "is not known here; this match is left out")
            return None
    fields: dict[str, Any] = {}
    place = (*path, "path")
    wanted = reading.mapping(entry.get("path"), place)
    kind = reading.text(wanted.get("type"), (*place, "type"), default="PathPrefix")
    value = reading.text(wanted.get("value"), (*place, "value"), default="/")
    if kind in _KINDS:
        fields["path"] = reading.condition(place, **{_KINDS[kind]: value})
    elif kind == "PathPrefix":
        if value.rstrip("/"):
            fields["path"] = reading.condition(place, regex=re.escape(value.rstrip("/")) + "(/.*)?")
    else:
        reading.wrong((*place, "type"), f"{kind!r} is none of Exact, PathPrefix, RegularExpression")
        return None
    for group, target in (("headers", "headers"), ("queryParams", "query")):
        conditions: dict[str, Text] = {}
        for where, item in reading.items(entry.get(group), (*path, group)):
            one = reading.mapping(item, where)
            name = reading.text(one.get("name"), (*where, "name"))
            exact = one.get("type", "Exact") == "Exact"
            said = {"exact" if exact else "regex": reading.text(one.get("value"), (*where, "value"))}
            condition = reading.condition(where, **said)
            if name and condition is not None:
                conditions.setdefault(name, condition)
        fields[target] = conditions
    if entry.get("method") is not None:
        fields["methods"] = (reading.text(entry["method"], (*path, "method")),)
    rank = (
        0 if kind == "Exact" else 1,
        -len(value) if kind != "Exact" else 0,
        0 if "methods" in fields else 1,
        -len(fields["headers"]),
        -len(fields["query"]),
    )
    return rank, fields
