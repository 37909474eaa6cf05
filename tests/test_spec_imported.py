# SPDX-License-Identifier: Apache-2.0
"""What importers share: nothing of their data is taken on trust."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.spec.document import Document, FileError
from tapmirror.spec.imported import Destination, Importing, host_condition
from tapmirror.spec.kubernetes import import_tap


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("*", None),
        ("*.a.b", {"suffix": ".a.b"}),
        ("A.b", {"exact": "a.b"}),
        ("a", {"regex": r"a(\.ns(\.svc(\.cluster\.local)?)?)?"}),
        ("a.x.svc.cluster.local", {"regex": r"a(\.x(\.svc(\.cluster\.local)?)?)?"}),
    ],
)
def test_hosts(host: str, wanted: Any) -> None:
    assert host_condition(host, "ns") == wanted


def test_destinations_get_their_address_from_the_user_or_from_dns() -> None:
    reading = Importing(Document({}, {}, []), {"a:v1": "10.0.0.1:80"}, [9080])
    assert reading.shadow(Destination("a", "v1", None), ()) == "a:v1"
    assert reading.shadow(Destination("b", "", None), ()) == "b"
    assert reading.shadow(Destination("b", "v2", None), ()) is None
    assert [shadow.end_point for shadow in reading.shadows.values()] == ["10.0.0.1:80", "b:9080"]
    assert len(reading.problems) == 1


NAMES = (
    "hosts",
    "http",
    "match",
    "mirror",
    "mirrors",
    "host",
    "uri",
    "exact",
    "rules",
    "filters",
    "type",
    "path",
    "value",
)
KEYS = st.sampled_from(NAMES)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["RequestMirror", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(
        [
            ("VirtualService", "networking.istio.io/v1"),
            ("DestinationRule", "networking.istio.io/v1"),
            ("HTTPRoute", "gateway.networking.k8s.io/v1"),
        ]
    ),
    spec=VALUES,
)
def test_any_document_is_read_or_refused(kind: tuple[str, str], spec: Any) -> None:
    document = Document({"kind": kind[0], "apiVersion": kind[1], "spec": spec}, {}, [])
    with contextlib.suppress(FileError):
        import_tap([document], {"iface": "eth0", "ports": [80]}, {})
