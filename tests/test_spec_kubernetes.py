# SPDX-License-Identifier: Apache-2.0
"""Files of Kubernetes: where to tap, what is left out, what is wrong."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_cases import BOOKINFO
from tapmirror.spec import Protocol, TapSpec
from tapmirror.spec.document import FileError, load
from tapmirror.spec.kubernetes import import_tap, is_kubernetes

BESIDE: dict[str, Any] = {"iface": "eth0", "ports": [9080]}
V2 = {"reviews:v2": "10.0.0.12:9080"}


def imported(data: bytes, resolve: dict[str, str] | None = None, **given: Any) -> tuple[TapSpec, list[str]]:
    tap, warnings = import_tap(load(data), {**BESIDE, **given}, V2 if resolve is None else resolve)
    return tap, [str(warning) for warning in warnings]


def problems(data: bytes, resolve: dict[str, str] | None = None, **given: Any) -> list[str]:
    with pytest.raises(FileError) as caught:
        imported(data, resolve, **given)
    return [str(problem) for problem in caught.value.found]


def test_bookinfo() -> None:
    tap, warnings = imported(BOOKINFO)
    assert warnings == []
    assert (tap.iface, tap.ports, tap.protocol) == ("eth0", (9080,), Protocol.HTTP)
    (shadow,) = tap.shadows
    assert (shadow.label, shadow.end_point, shadow.rewrite.host) == ("reviews:v2", "10.0.0.12:9080", "shadow-suffix")
    (rule,) = tap.rules
    assert rule.mirror is not None and [(m.shadow, m.percent) for m in rule.mirror] == [("reviews:v2", 50.0)]


def test_a_document_that_says_where() -> None:
    base = b"name: shop\niface: lo\nport: 81\nresolve: {'reviews:v2': '10.0.0.5:81'}\n---\n"
    documents = load(base + BOOKINFO)
    assert is_kubernetes(documents) and not is_kubernetes(load(base))
    tap, _ = import_tap(documents, {}, {})
    assert (tap.name, tap.iface, tap.ports, tap.shadows[0].end_point) == ("shop", "lo", (81,), "10.0.0.5:81")


@pytest.mark.parametrize(
    ("before", "resolve", "wanted"),
    [
        (b"", {}, "8: spec.http[0].mirror: a subset has no name in DNS: --resolve reviews:v2=HOST:PORT"),
        (b"", {"reviews:v2": "x"}, "8: spec.http[0].mirror: reviews:v2: 'x' is not HOST:PORT"),
        (b"shadow: a:1\n---\n", None, "1: shadow: comes from the rules of the other documents"),
        (b"resolve: [1]\n---\n", None, "1: resolve: is not a mapping of NAME: HOST:PORT"),
        (b"percent: 200\n---\n", None, "1: percent: 200.0 is not between 0 and 100"),
    ],
)
def test_refused(before: bytes, resolve: dict[str, str] | None, wanted: str) -> None:
    assert problems(before + BOOKINFO, resolve) == [wanted]


def test_where_to_tap_is_needed() -> None:
    with pytest.raises(FileError) as caught:
        import_tap(load(BOOKINFO), {}, V2)
    where = "or a document without `kind` in the file, says it"
    assert {problem.message for problem in caught.value.found} == {
        f"iface is missing: --iface, {where}",
        f"ports is missing: --port, {where}",
    }


def test_files_that_mirror_nothing_and_kinds_that_are_not_known() -> None:
    without = BOOKINFO.replace(b"      mirror: {host: reviews, subset: v2}\n", b"")
    assert problems(without) == ["no route in it mirrors anything"]
    _, warnings = imported(BOOKINFO + b"---\napiVersion: v1\nkind: Service\n")
    assert warnings == ["19: kind: 'Service' (v1) says nothing about mirroring"]


def test_a_list_as_kubectl_prints_it() -> None:
    items = BOOKINFO.replace(b"---\n", b"").replace(b"apiVersion", b"- apiVersion").replace(b"\n", b"\n  ")
    whole = b"apiVersion: v1\nkind: List\nitems:\n" + items.replace(b"  - apiVersion", b"- apiVersion")
    tap, warnings = imported(whole)
    assert (tap, warnings) == imported(BOOKINFO)
    assert problems(whole, {}) == [
        "11: spec.http[0].mirror: a subset has no name in DNS: --resolve reviews:v2=HOST:PORT"
    ]
    assert problems(b"apiVersion: v1\nkind: List\nitems: 5\n")[0] == "no route in it mirrors anything"


WHOLE = b"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x, namespace: n}
spec:
  hosts: [a, "*.b"]
  http:
    - name: r
      match:
        - {uri: {regex: /a}, method: {exact: GET}, authority: {prefix: a}, scheme: {exact: http}, port: 9080}
        - {headers: {h: {exact: b}}, withoutHeaders: {w: {}}, queryParams: {q: {prefix: c}}, ignoreUriCase: true}
      mirror: {host: new, subset: v1, port: {number: 80}}
      mirrorPercentage: {value: 5}
    - mirrors: [{destination: {host: new}, percentage: {value: 1}}, {destination: {host: old}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
spec: {host: new, subsets: [{name: v1}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: n}
spec:
  hostnames: [a]
  rules:
    - matches:
        - path: {type: Exact, value: /a}
          method: GET
          headers: [{name: h, value: v}]
          queryParams: [{name: q, type: RegularExpression, value: v}]
      backendRefs: [{name: a, filters: []}]
      filters:
        - type: RequestMirror
          requestMirror: {backendRef: {name: b, namespace: c, port: 80}, fraction: {numerator: 1, denominator: 3}}
"""
READ = load(WHOLE)
STRANGE: list[Any] = [
    *(None, True, 0, -1, 0.5, 10**30, float("nan"), float("inf"), "", "x", "*", "(", "a\nb", "\0", "a" * 300),
    *([], {}, [None], [[]], {"": ""}, {"exact": 5}, {"regex": "("}, {"prefix": None}, {"value": "x"}, {"number": "80"}),
]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_value_anywhere_is_taken_or_refused(draw: st.DataObject) -> None:
    documents = copy.deepcopy(READ)
    for _ in range(draw.draw(st.integers(1, 3))):
        data = draw.draw(st.sampled_from(documents)).data
        *above, last = draw.draw(st.sampled_from(places(data)[1:]))
        for key in above:
            data = data[key]
        data[last] = copy.deepcopy(draw.draw(st.sampled_from(STRANGE)))
    with contextlib.suppress(FileError):
        import_tap(documents, BESIDE, {"new:v1": "10.0.0.12:9080"})


def test_the_whole_is_taken() -> None:
    tap, warnings = import_tap(load(WHOLE), BESIDE, {"new:v1": "10.0.0.12:9080"})
    assert [shadow.label for shadow in tap.shadows] == ["new:v1", "new", "old", "b.c"]
    assert warnings == []


def test_what_is_left_out_is_told_in_the_order_of_lines() -> None:
    text = b"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
spec:
  hosts: [shop.test]
  http:
  - headers: {request: {remove: [x]}}
    mirror: {host: new}
    fault: {}
    route: [{headers: {request: {remove: [y]}}}]
    retries: {}
"""
    _, warnings = import_tap(load(text), {"iface": "eth0", "ports": [80]}, {})
    assert [problem.line for problem in warnings] == [6, 8, 9, 10]
