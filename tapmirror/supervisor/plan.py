# SPDX-License-Identifier: Apache-2.0
"""The steps from the taps that run to those that are wanted, and which taps may not run together.

Values in, values out.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from tapmirror.spec import Shadow, TapSpec
from tapmirror.spec.tap import ANY

LIVE: Final = frozenset({"percent", "ramp"})
"""Fields that can be changed in a running tap.  A ramp can end this way, but not begin."""
SSH: Final = 22


class Action(enum.Enum):
    """What is done with a tap."""

    ADD = "add"
    CHANGE = "change"
    """It is changed while it runs; every connection stays."""
    RESTART = "restart"
    """It ends and starts with other fields; what clients send in between is not captured."""
    REMOVE = "remove"
    KEEP = "keep"
    """The tap is not touched."""


class Step(msgspec.Struct, frozen=True):
    """What is done with one tap."""

    name: str
    action: Action
    spec: TapSpec
    """The wanted tap; of a tap that is removed, the present one."""
    fields: tuple[str, ...] = ()
    """Names of the fields that differ."""

    def told(self) -> dict[str, Any]:
        """The step as a reply of the control socket has it."""
        return {"name": self.name, "action": self.action.value, "fields": list(self.fields)}


def plan(running: Mapping[str, TapSpec], wanted: Sequence[TapSpec]) -> list[Step]:
    """The steps from `running` to `wanted`, those that make room first."""
    names = {spec.name for spec in wanted}
    steps = [Step(name, Action.REMOVE, spec) for name, spec in running.items() if name not in names]
    for spec in wanted:
        now = running.get(spec.name)
        fields = () if now is None else different(now, spec)
        if now is None:
            action = Action.ADD
        elif not fields:
            action = Action.KEEP
        else:
            action = Action.CHANGE if LIVE.issuperset(fields) and spec.ramp is None else Action.RESTART
        steps.append(Step(spec.name, action, spec, fields))
    order = [Action.REMOVE, Action.RESTART, Action.CHANGE, Action.ADD, Action.KEEP]
    return sorted(steps, key=lambda step: (order.index(step.action), step.name))


def different(one: TapSpec, other: TapSpec) -> tuple[str, ...]:
    """The fields in which two taps differ."""
    names = (field.name for field in msgspec.structs.fields(TapSpec))
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def conflict(spec: TapSpec, others: Iterable[TapSpec]) -> str | None:
    """Why this tap may not run beside the others: a shadow would get the same request twice.  None: it may."""
    for other in others:
        if other.name == spec.name or not any(overlap(a, b) for a in spec.links() for b in other.links()):
            continue
        ports = set(spec.ports) & set(other.ports)
        apart = spec.addrs and other.addrs and not set(spec.addrs) & set(other.addrs)
        same = {place(shadow) for shadow in spec.shadows} & {place(shadow) for shadow in other.shadows}
        if ports and same and not apart:
            return (
                f"the tap {other.name!r} mirrors {other.iface} port {min(ports)} to {min(same)} already: "
                "the shadow would get every request twice"
            )
    return None


def overlap(one: str, other: str) -> bool:
    """Whether two names or patterns can mean the same interface."""
    if fnmatch.fnmatchcase(one, other) or fnmatch.fnmatchcase(other, one):
        return True
    firm = [re.split(r"[*?[]", name)[0] for name in (one, other)]
    return firm[0] != one and firm[1] != other and (firm[0].startswith(firm[1]) or firm[1].startswith(firm[0]))


def place(shadow: Shadow) -> str:
    """Where a shadow is, as it is written in the spec."""
    return str(shadow.end_point).lower()


def needs_force(spec: TapSpec) -> str | None:
    """Why this tap is started only with `--force`; None: it needs none."""
    if SSH in spec.ports:
        return "port 22 is SSH's: a copy of logins helps no shadow"
    if spec.iface == ANY and not spec.addrs:
        return "iface: any without addrs takes everything to these ports, also what only passes this host"
    return None
