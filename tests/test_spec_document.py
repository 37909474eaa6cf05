# SPDX-License-Identifier: Apache-2.0
"""YAML to plain data with lines; hostile files are refused, with a line, in bounded time."""

from __future__ import annotations

import contextlib
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.spec.document import MAX_BYTES, FileError, dotted, load

BOMB = b"a: &a [1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%b]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)


def test_values_and_their_lines() -> None:
    first, second = load(b"a: 1\nb:\n  - x: true\n    y: 1.5\n  - null\n---\nc: 2001-01-01\n---\n# nothing\n")
    assert first.data == {"a": 1, "b": [{"x": True, "y": 1.5}, None]}
    assert [first.line(path) for path in ((), ("a",), ("b", 0, "y"), ("b", 1), ("b", 0, "z"))] == [1, 1, 4, 5, 3]
    assert second.data == {"c": "2001-01-01"}
    assert second.line(("c",)) == 7


def test_aliases_are_values_again() -> None:
    (found,) = load(b"a: &x {k: 1}\nb: *x\n")
    assert found.data == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{b: 2, <<: *x}", {"k": 1, "b": 2}),
        ("{k: 2, <<: *x}", {"k": 2}),
        ("{<<: [{k: 3}, *x], <<: {c: 4}}", {"k": 3, "c": 4}),
        ('{"<<": 1}', {"<<": 1}),
    ],
)
def test_a_mapping_can_have_the_fields_of_another(text: str, value: object) -> None:
    (found,) = load(f"a: &x {{k: 1}}\nb: {text}\n".encode())
    assert (found.data["b"], found.problems) == (value, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e2", 100.0),
        ("-1.5E+2", -150.0),
        (".5e1", 5.0),
        ("1e400", math.inf),
        ("'1e2'", "1e2"),
        ("80:22", "80:22"),
        ("12:30:45", "12:30:45"),
        ("!!int 1:20", "1:20"),
        ("!!int ''", ""),
        ("!!float _", "_"),
        ("!!bool maybe", "maybe"),
        ("1e", "1e"),
        ("0x10", 16),
        (r'"\ud83d\ude00"', "\U0001f600"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    (found,) = load(f"a: {text}\n".encode())
    assert (found.data, found.problems) == ({"a": value}, [])


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"a: [\n", 2, "not YAML"),
        (b"a: 1\nb: 2\n c: 3", 3, "not YAML"),
        (b"a: *b", 1, "undefined alias"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        (b"a: 1\nb: \x01\n", 2, "U+0001"),
        (b"x" * (MAX_BYTES + 1), 0, "longer than"),
        (b"[" * 100_000, 0, "nested deeper"),
        (b"a: " + b"{a: " * 100 + b"1" + b"}" * 100, 1, "nested deeper"),
        (b"&a [*a]", 1, "nested deeper"),
        (BOMB, 0, "more than"),
        (rb'a: "\U00110000"', 0, "not YAML"),
        (rb'a: "\UFFFFFFFF"', 0, "not YAML"),
        (b"%YAML 1." + b"1" * 5000 + b"\n---\na: 1", 0, "not YAML"),
    ],
)
def test_refused(data: bytes, line: int, message: str) -> None:
    began = time.process_time()
    with pytest.raises(FileError) as caught:
        load(data)
    (problem,) = caught.value.found
    assert message in problem.message and "\n" not in str(problem)
    assert problem.line == line or data is BOMB
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        (b"a: 1\nb: 2\na: 3\n", ["3: a: given twice"]),
        (b"x: {a: 1, a: 2}\n", ["1: x.a: given twice"]),
        (b"[1, 2]: 3\n", ["1: a key is not a text"]),
        (b"a: !!python/object:os.system x\n", ["1: a: the tag 'python/object:os.system' is not known here"]),
        (b"a: 1\n<<: [{}, x]\n", ["2: <<: 'x' is not a mapping"]),
        (b"a: !x [1]\n", []),
        (
            rb'{a: "\ud800", "\ude00": 1}',
            ["1: a: half of a character (a surrogate)", "1: half of a character (a surrogate)"],
        ),
    ],
)
def test_what_is_wrong_in_a_document_that_can_be_read(data: bytes, problems: list[str]) -> None:
    (found,) = load(data)
    assert [str(problem) for problem in found.problems] == problems


def test_paths() -> None:
    assert dotted(("a", 0, "b", "c")) == "a[0].b.c"
    assert dotted(()) == ""


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text("ab:[]{}-&*!|>'\"\n ,#%@`\t0.~", max_size=200).map(str.encode)))
def test_anything(data: bytes) -> None:
    with contextlib.suppress(FileError):
        load(data)
