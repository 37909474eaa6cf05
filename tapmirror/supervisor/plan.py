# SPDX-License-Identifier: Apache-2.0
"""From the taps that run to those that are wanted, and what taps may not run together.  Values in, values out."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from tapmirror.spec import TapSpec

LIVE: Final = frozenset({"percent"})
"""Fields that are changed in a running tap."""
SSH: Final = 22


class Action(enum.Enum):
    """What is done with a tap."""

    ADD = "add"
    CHANGE = "change"
    """While it runs; every connection stays."""
    RESTART = "restart"
    """With other fields: what is captured between is lost."""
    REMOVE = "remove"
    KEEP = "keep"
    """Not touched."""


class Step(msgspec.Struct, frozen=True):
    """What is done with one tap."""

    name: str
    action: Action
    spec: TapSpec
    """As it is to be (as it is, where it is removed)."""
    fields: tuple[str, ...] = ()
    """What is different."""

    def told(self) -> dict[str, Any]:
        """As an answer has it."""
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
            action = Action.CHANGE if LIVE.issuperset(fields) and can_change(now) is None else Action.RESTART
        steps.append(Step(spec.name, action, spec, fields))
    order = [Action.REMOVE, Action.RESTART, Action.CHANGE, Action.ADD, Action.KEEP]
    return sorted(steps, key=lambda step: (order.index(step.action), step.name))


def different(one: TapSpec, other: TapSpec) -> tuple[str, ...]:
    """The fields in which two taps differ."""
    names = (field.name for field in msgspec.structs.fields(TapSpec))
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def can_change(spec: TapSpec) -> str | None:
    """Why the share of this tap cannot be set while it runs; None: it can."""
    if spec.ramp is not None:
        return "its share is a ramp, which changes by itself"
    return None


def conflict(spec: TapSpec, others: Iterable[TapSpec]) -> str | None:
    """Why this tap may not run beside the others: a shadow would get the same request twice.  None: it may."""
    for other in others:
        if other.name == spec.name or other.iface != spec.iface:
            continue
        ports = set(spec.ports) & set(other.ports)
        apart = spec.addrs and other.addrs and not set(spec.addrs) & set(other.addrs)
        same = {place(shadow) for shadow in spec.shadows} & {place(shadow) for shadow in other.shadows}
        if ports and same and not apart:
            return (
                f"the tap {other.name!r} mirrors {spec.iface} port {min(ports)} to {min(same)} already: "
                "the shadow would get every request twice"
            )
    return None


def place(shadow: Any) -> str:
    """Where a shadow is, as it is written."""
    return str(shadow.end_point).lower()


def needs_force(spec: TapSpec) -> str | None:
    """Why this tap is started only if one insists; None: nothing speaks against it."""
    if SSH in spec.ports:
        return "port 22 is SSH's: a copy of logins helps no shadow"
    return None
