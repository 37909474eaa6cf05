# SPDX-License-Identifier: Apache-2.0
"""The reference says what reading takes: every field, with its meaning, and no other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tapmirror.spec import Limits, Shadow, TapSpec
from tapmirror.spec.document import load
from tapmirror.spec.reading import read_taps
from tapmirror.spec.reference import example, field_docs, schema, structures


def test_the_example_is_a_tap_and_names_every_field() -> None:
    text = example()
    (tap,) = read_taps(text.encode())
    assert tap == TapSpec(iface="eth0", ports=(80,), shadows=(Shadow(host="staging.internal", port=8080),))
    for cls in structures():
        for field in msgspec.structs.fields(cls):
            assert f"{field.encode_name}: " in text, (cls, field.name)
    assert all(line.isprintable() and len(line) <= 110 for line in text.splitlines())


def test_defaults_in_the_example_are_what_they_say() -> None:
    """Uncommented, they change nothing."""
    limits = example().partition("# --- limits")[2].partition("# --- ")[0].splitlines()
    values = [
        line.removeprefix("# ") for line in limits if line.removeprefix("# ").split(":")[0] in Limits.__struct_fields__
    ]
    (document,) = load("\n".join(values).encode())
    assert set(document.data) == set(Limits.__struct_fields__)
    assert msgspec.convert(document.data, Limits) == Limits()


def test_what_fields_mean() -> None:
    docs = field_docs(Shadow)
    assert docs["copies"].startswith("How many times")
    assert docs["percent"].startswith("Share that is mirrored")  # of its base


def at(part: Any, *names: str) -> Any:
    for name in names:
        part = part[name]
    return part


def test_the_schema_has_every_field_and_forbids_others() -> None:
    found = schema()
    for cls in structures():
        part = at(found, "$defs", cls.__name__)
        part = next((each for each in part.get("anyOf", []) if each.get("type") == "object"), part)
        assert {field.encode_name for field in msgspec.structs.fields(cls)} <= set(part["properties"])
        assert part["additionalProperties"] is False
    assert {"port", "shadow", "rule", "addr"} <= set(at(found, "$defs", "TapSpec", "properties"))
    assert "description" in at(found, "$defs", "TapSpec", "properties", "percent")
    assert at(found, "$defs", "TapSpec", "properties", "percent", "type") == ["number", "string"]
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


@pytest.mark.parametrize("cls", structures())
def test_no_reference_leads_nowhere(cls: type) -> None:
    text = msgspec.json.encode(schema()).decode()
    assert f'"{cls.__name__}":' in text
