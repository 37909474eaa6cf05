# SPDX-License-Identifier: Apache-2.0
"""A file of Kubernetes documents as a tap: VirtualService, DestinationRule, HTTPRoute.

Where to tap is not in them: it is given beside (`--iface`, `--port`), or by a document without `kind`
in the same file, which is a tap without shadows and rules and may have `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tapmirror.spec import gateway, istio
from tapmirror.spec.document import Document, FileError, Problem
from tapmirror.spec.errors import SpecError, shown
from tapmirror.spec.imported import Importing
from tapmirror.spec.reading import taps_of
from tapmirror.spec.shadow import Shadow
from tapmirror.spec.tap import Rule, TapSpec

RESOLVE: Final = "resolve"
_UNSAID: Final = {"iface is missing": "--iface", "ports is missing": "--port"}


def is_kubernetes(documents: Iterable[Document]) -> bool:
    """Whether one of the documents is one of Kubernetes."""
    return any(isinstance(each.data, dict) and "kind" in each.data and "apiVersion" in each.data for each in documents)


def import_tap(
    documents: list[Document], given: dict[str, Any], resolve: dict[str, str]
) -> tuple[TapSpec, list[Problem]]:
    """The tap and what is left out.  `given` are fields of the tap, `resolve` addresses of destinations.

    Raises `FileError`.
    """
    found = [problem for document in documents for problem in document.problems]
    documents = [each for document in documents for each in _items(document)]
    warnings: list[Problem] = []
    own = [each for each in documents if isinstance(each.data, dict) and "kind" not in each.data]
    base: dict[str, Any] = {}
    lines: dict[tuple[str | int, ...], int] = {}
    for document in own:
        base |= document.data
        lines |= document.lines
    addresses = base.pop(RESOLVE, {})
    if not isinstance(addresses, dict) or not all(isinstance(each, str) for each in addresses.values()):
        found.append(Problem(lines.get((RESOLVE,), 0), RESOLVE, "is not a mapping of NAME: HOST:PORT"))
        addresses = {}
    for field in ("shadow", "shadows", "rule", "rules", "protocol"):
        if field in base:
            found.append(Problem(lines.get((field,), 0), field, "comes from the rules of the other documents"))
            del base[field]
    base = {**base, **given, "protocol": "http", "shadow": "0.0.0.0:1"}
    try:
        (tap,) = taps_of([Document(base, lines, [])])
    except FileError as error:
        raise FileError(found + [_said_where(each) for each in error.found]) from None
    rules, shadows = _read(documents, {**addresses, **resolve}, tap.ports, found, warnings)
    if not shadows and not found:
        found += [*warnings, Problem(0, "", "no route in it mirrors anything")]
    if found:
        raise FileError(found)
    try:
        return msgspec.structs.replace(tap, shadows=tuple(shadows.values()), rules=tuple(rules)), warnings
    except SpecError as error:
        raise FileError([Problem(0, field, message) for field, message in error.problems]) from None


def _said_where(problem: Problem) -> Problem:
    """The problem, and, if it is something that Kubernetes' rules do not state, how to state it."""
    option = _UNSAID.get(problem.message)
    if option is None:
        return problem
    said = f"{problem.message}: {option}, or a document without `kind` in the file, says it"
    return Problem(problem.line, problem.path, said)


def _items(document: Document) -> list[Document]:
    """The documents that one document stands for: several if it is a list, as `kubectl get -o yaml` prints it."""
    data = document.data
    if not isinstance(data, dict) or not str(data.get("kind", "")).endswith("List"):
        return [document]
    items = data.get("items")
    if not isinstance(items, list):
        return [document]
    return [
        Document(item, {path[2:]: line for path, line in document.lines.items() if path[:2] == ("items", i)}, [])
        for i, item in enumerate(items)
    ]


def _read(
    documents: list[Document],
    resolve: dict[str, str],
    ports: tuple[int, ...],
    found: list[Problem],
    warnings: list[Problem],
) -> tuple[list[Rule], dict[str, Shadow]]:
    readings = [
        Importing(each, resolve, ports) for each in documents if isinstance(each.data, dict) and "kind" in each.data
    ]
    subsets: dict[str, set[str]] = {}
    for reading in readings:
        if reading.document.data["kind"] == "DestinationRule":
            host, names = istio.subsets_of(reading)
            subsets.setdefault(host, set()).update(names)
    rules: list[Rule] = []
    shadows: dict[str, Shadow] = {}
    for reading in readings:
        kind, version = reading.document.data["kind"], reading.document.data.get("apiVersion")
        reading.shadows = shadows
        if kind == "VirtualService" and version in istio.VERSIONS:
            rules += istio.rules_of(reading, subsets)
        elif kind == "HTTPRoute" and version in gateway.VERSIONS:
            rules += gateway.rules_of(reading)
        elif kind in ("VirtualService", "HTTPRoute"):
            known = ", ".join(istio.VERSIONS if kind == "VirtualService" else gateway.VERSIONS)
            reading.wrong(("apiVersion",), f"{shown(version)} is none of {known}")
        elif kind != "DestinationRule":
            reading.left_out(("kind",), f"{shown(kind)} ({version}) says nothing about mirroring")
    for reading in readings:
        if not shadows:  # all percentages are 0: the tap is off, and says to where
            for destination, path in reading.off:
                reading.shadow(destination, path)
        found += reading.problems
        warnings += sorted(reading.warnings, key=lambda problem: problem.line)
    return rules, shadows
