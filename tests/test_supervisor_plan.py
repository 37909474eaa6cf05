# SPDX-License-Identifier: Apache-2.0
"""Plans: only what changed is changed, and what can be changed live is."""

from __future__ import annotations

from typing import Any

import pytest

from tapmirror.spec import Ramp, TapSpec, parse_shadow
from tapmirror.supervisor.plan import Action, conflict, needs_force, plan


def tap(name: str = "web", **more: Any) -> TapSpec:
    shadows = more.pop("shadows", "s.test:80").split()
    base: dict[str, Any] = {"iface": "eth0", "ports": (80,), "shadows": tuple(map(parse_shadow, shadows))}
    return TapSpec(name=name, **{**base, **more})


@pytest.mark.parametrize(
    ("now", "wanted", "action", "fields"),
    [
        (tap(), tap(), Action.KEEP, ()),
        (None, tap(), Action.ADD, ()),
        (tap(), None, Action.REMOVE, ()),
        (tap(), tap(percent=5), Action.CHANGE, ("percent",)),
        (tap(), tap(ports=(81,)), Action.RESTART, ("ports",)),
        (tap(), tap(ports=(81,), percent=5), Action.RESTART, ("percent", "ports")),
        (tap(), tap(ramp=Ramp(start=0, end=5, over=9)), Action.RESTART, ("ramp",)),
        (tap(ramp=Ramp(start=0, end=5, over=9)), tap(percent=5), Action.CHANGE, ("percent", "ramp")),
    ],
)
def test_steps(now: TapSpec | None, wanted: TapSpec | None, action: Action, fields: tuple[str, ...]) -> None:
    (step,) = plan({"web": now} if now else {}, [wanted] if wanted else [])
    assert (step.name, step.action) == ("web", action)
    assert set(step.fields) == set(fields)
    assert step.spec == (wanted or now)
    assert step.told() == {"name": "web", "action": action.value, "fields": list(step.fields)}


def test_what_makes_room_comes_first() -> None:
    running = {name: tap(name) for name in "abcd"}
    wanted = [tap("e"), tap("d"), tap("c", percent=1), tap("b", seed=1)]
    assert [(step.name, step.action.value) for step in plan(running, wanted)] == [
        ("a", "remove"),
        ("b", "restart"),
        ("c", "change"),
        ("e", "add"),
        ("d", "keep"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "conflicts"),
    [
        ({}, {}, True),
        ({"ports": (80, 81)}, {"ports": (81, 82)}, True),
        ({"shadows": "S.test:80 t.test:80"}, {"shadows": "u.test:80 s.test:80"}, True),
        ({"addrs": ("10.0.0.1",)}, {}, True),
        ({"addrs": ("10.0.0.1",)}, {"addrs": ("10.0.0.1", "10.0.0.2")}, True),
        ({"addrs": ("10.0.0.1",)}, {"addrs": ("10.0.0.2",)}, False),
        ({"ports": (80,)}, {"ports": (81,)}, False),
        ({"shadows": "s.test:80"}, {"shadows": "s.test:81"}, False),
        ({"iface": "eth0"}, {"iface": "eth1"}, False),
        ({"iface": "eth0,eth1"}, {"iface": "eth1,eth2"}, True),
        ({"iface": "any"}, {"iface": "eth1"}, True),
        ({"iface": "eth*"}, {"iface": "eth1"}, True),
        ({"iface": "eth*"}, {"iface": "veth1"}, False),
        ({"iface": "eth*1"}, {"iface": "e*1"}, True),
        ({"iface": "eth*"}, {"iface": "veth*"}, False),
    ],
)
def test_no_shadow_gets_a_request_twice(one: dict[str, Any], other: dict[str, Any], conflicts: bool) -> None:
    reasons = [conflict(tap("a", **one), [tap("b", **other)]), conflict(tap("b", **other), [tap("a", **one)])]
    assert [reason is not None for reason in reasons] == [conflicts] * 2
    assert not conflicts or "the tap 'b' mirrors " in str(reasons[0])
    assert conflict(tap("a", **one), [tap("a", **other)]) is None  # it takes the other's place


def test_a_tap_on_ssh_needs_force() -> None:
    assert needs_force(tap()) is None
    assert "port 22" in str(needs_force(tap(ports=(80, 22))))


def test_a_tap_on_everything_needs_force() -> None:
    assert "takes everything" in str(needs_force(tap(iface="any")))
    assert needs_force(tap(iface="any", addrs=("10.0.0.1",))) is None
