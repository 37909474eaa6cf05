# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.compare.endpoints import FEW, OTHER, SEGMENTS, Endpoints, fold


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


def test_a_service_of_many_resources_has_as_many_endpoints() -> None:
    """They come in any order, each first when little is known, and were one endpoint from the 25th on."""
    endpoints = Endpoints((), 100)
    rand = random.Random(1)
    resources = [f"{first}{second}".encode() for first in ("or", "us", "in", "pa") for second in "abcdefghij"]
    for _ in range(2000):
        endpoints.name(b"GET", b"/api/" + rand.choice(resources) + b"/7")
    names = {endpoints.name(b"GET", b"/api/" + each + b"/8") for each in resources}
    assert names == {f"GET /api/{each.decode()}/{{id}}" for each in resources}
    assert endpoints.learned == 0


def test_names_make_room_for_routes_when_there_are_too_many_endpoints() -> None:
    endpoints = Endpoints((), 60)
    routes = [b"/r%c" % letter for letter in b"abcdefghijklmnopqrstuvwxyz"]
    seen = set()
    for n in range(3000):
        seen.add(endpoints.name(b"GET", routes[n % 26]))
        seen.add(endpoints.name(b"GET", b"/people/" + bytes([97 + n % 20, 97 + n % 50 // 20, 98 + n % 3])))
    assert OTHER not in seen
    assert endpoints.name(b"GET", b"/people/bob") == "GET /people/{id}"
    assert [endpoints.name(b"GET", route) for route in routes] == [f"GET {route.decode()}" for route in routes]
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
    assert endpoints._nodes <= 20 * FEW
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


def test_operations_that_share_a_path_are_told_apart() -> None:
    endpoints = Endpoints(("/v1/{service}",), 100)
    assert endpoints.name(b"POST", b"/graphql?a=b", "getUser") == "POST /graphql getUser"
    assert endpoints.name(b"POST", b"/graphql") == "POST /graphql"
    assert endpoints.name(b"POST", b"/", "eth_call") == "POST / eth_call"
    assert endpoints.name(b"POST", b"/v1/a", "Get") == "POST /v1/{service} Get"
    assert endpoints.name(b"POST", b"/t/7/rpc", "a/b") == "POST /t/{id}/rpc a/b"
    assert Endpoints((), 9, lambda path: path.replace(b"s3cret", b"X Y")).name(b"POST", b"/", "s3cret") == "POST / X_Y"


def test_a_hundred_operations_leave_room_for_other_paths() -> None:
    endpoints = Endpoints((), 100)
    names = [endpoints.name(b"POST", b"/graphql", f"op{n % 100}") for n in range(1000)]
    assert len({*names}) == 76
    assert names[-1] == "POST /graphql {operation}"
    assert names[74] == names[-26] == "POST /graphql op74"
    assert endpoints.name(b"GET", b"/users/5") == "GET /users/{id}"
    assert endpoints.name(b"POST", b"/rpc", "other") == "POST /rpc {operation}"
    assert endpoints.learned == 0


def test_names_of_operations_that_somebody_makes_up_make_room_for_those_that_are_called_for() -> None:
    endpoints = Endpoints((), 20)
    rand = random.Random(1)
    seen = ["POST /graphql real" for _ in range(20) if endpoints.name(b"POST", b"/graphql", "real")]
    for n in range(20_000):
        seen.append(endpoints.name(b"POST", b"/graphql", f"x{rand.getrandbits(64)}" if n % 50 else "real"))
    assert endpoints.learned <= 5, "each costs all that is known a turn"
    made_up = [name for name in seen if name.startswith("POST /graphql x")]
    assert 0 < len(made_up) < 20 * (endpoints.learned + 1)
    assert endpoints._told <= 20
    places = endpoints.places()
    assert "real" in places["POST /graphql "]
    assert fold(["POST /graphql real", made_up[0], "POST /graphql", "POST /x a"], places) == {
        made_up[0]: "POST /graphql {operation}"
    }
    for _ in range(50_000):  # the next time there is room it is for what is called for often
        name = endpoints.name(b"POST", b"/graphql", "late")
    assert name == "POST /graphql late"


def test_operations_of_paths_that_become_one_are_those_of_one() -> None:
    endpoints = Endpoints((), 1000)
    names = set()
    for n in range(2000):
        tenant = bytes(random.Random(n % 500).choices(b"abcdefgh", k=5))
        names.add(endpoints.name(b"POST", b"/" + tenant + b"/graphql", f"op{n % 3}"))
    assert endpoints.name(b"POST", b"/abcde/graphql", "op1") == "POST /{id}/graphql op1"
    assert endpoints._told == 3, "what is known of paths that are names by now is forgotten"
    assert {*fold(names, endpoints.places()).values()} == {f"POST /{{id}}/graphql op{n}" for n in range(3)}


def test_operations_of_a_path_become_those_of_its_template() -> None:
    places = {"/t": [], "POST /t/{id} ": ["get"]}
    assert fold(["POST /t/bob get", "POST /t/bob put", "GET /t/bob get"], places) == {
        "POST /t/bob get": "POST /t/{id} get",
        "POST /t/bob put": "POST /t/{id} {operation}",
        "GET /t/bob get": "GET /t/{id} get",
    }
    given = frozenset({"/t/{name}"})
    assert fold(["POST /t/{name} get"], places, given) == {}


def test_names_that_were_made_up_and_repeated_do_not_hold_their_places_for_ever() -> None:
    endpoints = Endpoints((), 20)
    for n in range(15 * 20):
        endpoints.name(b"POST", b"/graphql", f"x{n % 15}")
    assert endpoints.name(b"POST", b"/graphql", "real") == "POST /graphql {operation}"
    names = {n: endpoints.name(b"POST", b"/graphql", f"real{n % 3}") for n in range(10_000)}
    assert {*names.values()} >= {f"POST /graphql real{n}" for n in range(3)}
    assert {*list(names.values())[-1000:]} == {f"POST /graphql real{n}" for n in range(3)}
    for _ in range(5):  # and those stay, whatever comes beside them
        for n in range(20_000):
            endpoints.name(b"POST", b"/graphql", f"real{n % 3}" if n % 2 else f"y{n}")
    assert endpoints.name(b"POST", b"/graphql", "real1") == "POST /graphql real1"


@pytest.mark.parametrize(
    ("operation", "shown"),
    [
        ("user.delete/alice@example.com", "user.delete/{id}"),
        ("4f9a8bc2-b2e8-4f9a-8bc2-b2e84f9a8bc2", "{id}"),
        ("orders.1742.get", "orders.{id}.get"),
        ("tools/list", "tools/list"),
        ("eth_call", "eth_call"),
        ("GetABTestBucket2024", "GetABTestBucket2024"),
        ("user123", "user123"),
    ],
)
def test_identifiers_in_operations_are_not_named(operation: str, shown: str) -> None:
    assert Endpoints((), 20).name(b"POST", b"/rpc", operation) == f"POST /rpc {shown}"
