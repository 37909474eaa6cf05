# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.compare.endpoints import OTHER, SEGMENTS, WORDS, Endpoints, fold


def test_identifiers_by_their_look() -> None:
    endpoints = Endpoints((), 100)
    assert endpoints.name(b"GET", b"/") == "GET /"
    assert endpoints.name(b"GET", b"/users/17/orders?page=2") == "GET /users/{id}/orders"
    assert endpoints.name(b"POST", b"/v2/items/5f4dcc3b5aa765d61d8327deb882cf99") == "POST /v2/items/{id}"
    assert endpoints.name(b"GET", b"http://host/users/5") == "GET /users/{id}"
    assert endpoints.name(b"GET", b"http://10/20/v3/40x/50?6") == "GET /{id}/v3/40x/{id}"
    assert endpoints.name(b"HACK", b"/x\x1b[2J") == "OTHER /x?[2J"
    assert endpoints.name(b"OPTIONS", b"*") == "OPTIONS /"
    assert endpoints.name(b"GET", b"/cart;jsessionid=7A/items;color=red?x") == "GET /cart/items"


def test_long_paths_are_not_kept() -> None:
    endpoints = Endpoints((), 10)
    for n in range(100):
        endpoints.name(b"GET", b"/a/" + b"x" * 8000 + b"%d" % n)
    assert not endpoints._cache


def test_given_templates_come_first() -> None:
    endpoints = Endpoints(("/users/{name}", "GET /files/{path...}", "/users/me/{x}"), 100)
    assert endpoints.name(b"GET", b"/users/alice") == "GET /users/{name}"
    assert endpoints.name(b"GET", b"/files/a/b/c") == "GET /files/{path...}"
    assert endpoints.name(b"PUT", b"/files/a/b") == "PUT /files/a/b"
    assert endpoints.name(b"GET", b"/files") == "GET /files"
    assert endpoints.name(b"GET", b"/users/") == "GET /users/"


def test_numbers_in_given_templates_are_these_numbers() -> None:
    endpoints = Endpoints(("/reports/2024/{name}",), 100)
    assert endpoints.name(b"GET", b"/reports/2024/a") == "GET /reports/2024/{name}"
    assert endpoints.name(b"GET", b"/reports/2025/a") == "GET /reports/{id}/a"


def test_many_words_at_one_place_are_learned_to_be_names() -> None:
    endpoints = Endpoints((), 1000)
    for n in range(2000):
        endpoints.name(b"GET", b"/people/login")
        endpoints.name(b"GET", b"/people/" + bytes(random.Random(n).choices(b"abcdefgh", k=5)) + b"/profile")
    assert endpoints.name(b"GET", b"/people/somebody/profile") == "GET /people/{id}/profile"
    assert endpoints.name(b"GET", b"/people/login") == "GET /people/login"
    assert endpoints.learned == 1


def test_a_scan_takes_neither_memory_nor_the_names_of_others() -> None:
    endpoints = Endpoints((), 20)
    rand = random.Random(1)
    for _ in range(200):
        endpoints.name(b"GET", b"/api/items")
    names = {
        endpoints.name(
            b"GET", b"/" + b"/".join(bytes(rand.choices(b"abcdefgh", k=6)) for _ in range(rand.randint(1, 12)))
        )
        for _ in range(20_000)
    }
    assert len(names) < 200
    assert endpoints._nodes <= 20 * WORDS
    assert len(endpoints._names) <= 20
    assert endpoints.name(b"GET", b"/api/items") == "GET /api/items"
    assert OTHER in names


@given(st.binary(max_size=5), st.binary(max_size=300))
def test_whatever_comes_has_a_short_printable_name(method: bytes, target: bytes) -> None:
    name = Endpoints((), 10).name(method, target)
    assert len(name) < 700
    assert name.isprintable()


def learned(names: int, *frequent: bytes) -> Endpoints:
    """What has seen so many names of people, each once, and a few words often."""
    endpoints = Endpoints((), 1000)
    for n in range(names):
        for word in frequent:
            endpoints.name(b"GET", b"/u/" + word)
        endpoints.name(b"GET", b"/u/" + bytes(random.Random(n).choices(b"abcdefgh", k=5)))
    return endpoints


def test_names_that_are_not_told_apart_any_more_fold_into_their_template() -> None:
    places = learned(100, b"login").places()
    assert places == {"/u": ["login"]}
    names = ["GET /u/{id}", "GET /u/bob", "POST /u/bob", "GET /u/bob/x", "GET /u/{id}/x", "GET /v/bob", "other"]
    assert fold(names, places) == {
        "GET /u/bob": "GET /u/{id}",
        "POST /u/bob": "POST /u/{id}",
        "GET /u/bob/x": "GET /u/{id}/x",
    }
    assert fold(["GET /u/{id}/{id}", "GET /u/bob/x"], {"/u": [], "/u/{id}": ["y"]}) == {
        "GET /u/bob/x": "GET /u/{id}/{id}"
    }


def test_a_frequent_word_beside_names_stays_what_it_is() -> None:
    assert fold(["GET /u/{id}", "GET /u/login"], learned(100, b"login").places()) == {}


def test_a_path_of_numbers_does_not_take_in_what_it_looks_like() -> None:
    """A scan, or a year and a month, beside the routes of an application."""
    endpoints = Endpoints((), 100)
    names = {endpoints.name(b"GET", path) for path in (b"/users/17", b"/orders/3", b"/login", b"/2024/05", b"/99")}
    assert names == {"GET /users/{id}", "GET /orders/{id}", "GET /login", "GET /{id}/{id}", "GET /{id}"}
    assert fold(names, endpoints.places()) == {}


def test_what_given_templates_name_is_not_learned() -> None:
    given = frozenset({"/u/{name}", "GET /u/me"})
    assert fold(["GET /u/{name}", "GET /u/me", "GET /u/bob", "POST /u/me"], {"/u": []}, given) == {
        "GET /u/bob": "GET /u/{id}",
        "POST /u/me": "POST /u/{id}",
    }


@pytest.mark.parametrize("limit", [1, 2])
def test_the_bound_holds(limit: int) -> None:
    endpoints = Endpoints((), limit)
    assert len({endpoints.name(b"GET", b"/" + word) for word in (b"a", b"b", b"c", b"d")}) <= limit + 1


def test_only_as_many_words_are_looked_up_as_were_learned() -> None:
    """A hostile worker's name may have millions of words, and places for all of them."""
    path = "/a" * (SEGMENTS + 2)
    places: dict[str, list[str]] = {"/a" * depth: ["a"] for depth in range(SEGMENTS)}
    places["/a" * SEGMENTS] = []
    assert fold([f"GET {path}"], places) == {}
    places["/a" * (SEGMENTS - 1)] = []
    assert fold([f"GET {path}"], places) == {f"GET {path}": f"GET {'/a' * (SEGMENTS - 1)}/{{id}}/a/a"}
