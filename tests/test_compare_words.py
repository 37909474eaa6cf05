# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from tapmirror.compare.words import clean, shortened, variable


@pytest.mark.parametrize(
    "word",
    [
        "0",
        "12345",
        "2026-11-24",
        "550e8400-e29b-41d4-a716-446655440000",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "507F1F77BCF86CD799439011",
        "someone@example.com",
        "eyJhbGciOiJIUzI1NiJ9",
        "user123",
        "ORD-00017",
        "x" * 65,
        "10.0.0.1",
    ],
)
def test_identifiers(word: str) -> None:
    assert variable(word)


@pytest.mark.parametrize(
    "word", ["users", "v1", "v2beta1", "index.html", "oauth2", "deadbeef", "my-long-article-about-things", "", "p99"]
)
def test_words(word: str) -> None:
    assert not variable(word)


def test_names_are_short_and_printable() -> None:
    assert shortened("price") == "price"
    assert shortened("550e8400-e29b-41d4-a716-446655440000") == "{}"
    assert shortened("a\x1b[31m b") == "a?[31m b"
    assert len(shortened("long name " * 6)) == 60


def test_hostile_words_take_no_time_and_no_memory() -> None:
    began = time.process_time()
    for n in range(200):
        word = f"{n}" + "%40" * 20_000 + "@"
        assert variable(word)
        assert shortened(word) == "{}"
    assert time.process_time() - began < 5


def test_one_line_without_control_characters() -> None:
    assert clean("a\nb\x1b[1m\u202e") == "a·b·[1m·"
