# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.spec.document import FileError
from tapmirror.spec.numbers import decimal, number_of, seconds_of, whole_of
from tapmirror.spec.reading import read_taps

WRONG = ["", " 1", "1 ", "1_0", "\u0663", "0x10", "nan", "inf", "-", ".", "1e", "1,5", "1" * 101]


@pytest.mark.parametrize(
    ("text", "number"), [("90", 90), ("-1", -1), ("+.5", 0.5), ("2.", 2), ("1e3", 1000), ("0.25", 0.25)]
)
def test_a_number(text: str, number: float) -> None:
    assert number_of(text) == number == seconds_of(text)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_number(text: str) -> None:
    assert number_of(text) is None
    assert whole_of(text) is None
    assert seconds_of(text) is None


@pytest.mark.parametrize(
    ("value", "text"), [(1e-05, "0.00001"), (0.1, "0.1"), (100.0, "100"), (12.345678, "12.3457"), (0.0, "0")]
)
def test_a_number_is_told_without_an_exponent(value: float, text: str) -> None:
    assert decimal(value) == text


def test_a_whole_number() -> None:
    assert (whole_of("12"), whole_of("-3"), whole_of("1.0"), whole_of("1e3")) == (12, -3, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800), ("200ms", 0.2), ("1.5h", 5400), ("1m1s1ms", 61.001)],
)
def test_a_length_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["s", "1 h", "1H", "1w", "1h30", "-1h", "1..5h", "h1", "1us"])
def test_what_is_no_length_of_time(text: str) -> None:
    assert seconds_of(text) is None


@given(st.text(max_size=120))
def test_whatever_it_is_it_is_told(text: str) -> None:
    for read in (number_of, whole_of, seconds_of):
        read(text)


FILE = "iface: lo\nport: 80\nshadow: a:1\n"


def test_times_of_a_file() -> None:
    (tap,) = read_taps(f"{FILE}ttl: 2h\nlimits: {{drain_time: 500ms, flow_idle: 90}}\n".encode())
    assert (tap.ttl, tap.limits.drain_time, tap.limits.flow_idle) == (7200, 0.5, 90)
    (tap,) = read_taps(f"{FILE}ramp: {{from: 1, to: 100, over: 15m}}\n".encode())
    assert tap.ramp is not None and tap.ramp.over == 900


@pytest.mark.parametrize("text", ["2 hours", "1_0s", "-1h", "[1]", "true"])
def test_a_wrong_time_of_a_file_is_told_with_its_line(text: str) -> None:
    with pytest.raises(FileError) as caught:
        read_taps(f"{FILE}ttl: {text}\n".encode())
    (problem,) = caught.value.found
    assert (problem.line, problem.path) == (4, "ttl")
