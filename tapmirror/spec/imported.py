# SPDX-License-Identifier: Apache-2.0
"""What importers of other people's rules share: walking their data, destinations, what cannot be honoured."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from tapmirror.spec.document import Document, Path, Problem, dotted
from tapmirror.spec.errors import SpecError, shown
from tapmirror.spec.match import Match, Text
from tapmirror.spec.rewrite import SHADOW_SUFFIX, Rewrite
from tapmirror.spec.shadow import Shadow, parse_shadow

Item: TypeAlias = tuple[Path, Any]
"""An item of a list: its value, and where it is."""

CLUSTER: Final = "svc.cluster.local"
CHANGES: Final = (
    "the proxy changes its copies so, too; here they are as the request passes the interface, behind it changed already"
)
"""Envoy's router makes them of what it is about to send (`finalizeRequestHeaders` before `shadow_headers_`)."""
ANSWERS: Final = "the proxy answers by itself: nothing is mirrored here"
BESIDE: Final = "is done by the proxy in the path, and not to the copies made here"


class Destination(msgspec.Struct, frozen=True):
    """Where a rule of theirs mirrors to."""

    host: str
    subset: str
    port: int | None

    @property
    def name(self) -> str:
        """As `--resolve` and our rules call it."""
        return f"{self.host}:{self.subset}" if self.subset else self.host


class Importing:
    """One document being read: what is wrong with it and what is left out, by field."""

    def __init__(self, document: Document, resolve: dict[str, str], ports: Collection[int]) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.shadows: dict[str, Shadow] = {}
        self._resolve = resolve
        self.ports = list(ports)
        self.off: list[tuple[Destination, Path]] = []
        """Where nothing goes because the percentage is 0."""

    def wrong(self, path: Path, message: str) -> None:
        """Something that cannot be taken."""
        self.problems.append(Problem(self.document.line(path), dotted(path), message))

    def left_out(self, path: Path, message: str) -> None:
        """Something that a mirror beside the path cannot do."""
        self.warnings.append(Problem(self.document.line(path), dotted(path), message))

    def mapping(self, data: Any, path: Path) -> dict[str, Any]:
        """A mapping with its keys in camel case (protobuf's JSON takes both); empty if it is none."""
        found = self.mapping_as_it_is(data, path)
        return {re.sub(r"_([a-z])", lambda found: found[1].upper(), key): value for key, value in found.items()}

    def mapping_as_it_is(self, data: Any, path: Path) -> dict[str, Any]:
        """The same with its keys as they are: names of fields and parameters."""
        if data is not None and not isinstance(data, dict):
            self.wrong(path, f"{shown(data)} is not a mapping")
        return data if isinstance(data, dict) else {}

    def items(self, data: Any, path: Path) -> Iterator[Item]:
        """The items of a list."""
        if data is None:
            return
        if not isinstance(data, list):
            self.wrong(path, f"{shown(data)} is not a list")
            return
        for i, item in enumerate(data):
            yield (*path, i), item

    def text(self, data: Any, path: Path, *, default: str = "") -> str:
        """A text."""
        if data is None:
            return default
        if not isinstance(data, str):
            self.wrong(path, f"{shown(data)} is not a text")
            return default
        return data

    def number(self, data: Any, path: Path) -> float | None:
        """A number, if it is given."""
        if data is None:
            return None
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.wrong(path, f"{shown(data)} is not a number")
            return None
        return float(data)

    def port(self, data: Any, path: Path) -> int | None:
        """A port, if it is given (0: not)."""
        value = self.number(data, path)
        if not value:
            return None
        if not 0 < value < 65536 or value % 1:
            self.wrong(path, f"{shown(data)} is not a port (1 to 65535)")
            return None
        return int(value)

    def match(self, where: Path, /, **conditions: Any) -> Match | None:
        """Conditions on a request, if they are valid ones."""
        try:
            return Match(**conditions)
        except SpecError as error:
            for field, message in error.problems:
                self.wrong(where, f"{field}: {message}")
            return None

    def condition(self, path: Path, **text: Any) -> Text | None:
        """A condition on a text, if it is a valid one."""
        try:
            return Text(**text)
        except SpecError as error:
            self.wrong(path, str(error))
            return None

    def percent(self, value: float | None, path: Path) -> float:
        """A percentage; absent it is 100."""
        if value is None:
            return 100.0
        if not 0 <= value <= 100:
            self.wrong(path, f"{value:.10g} is not between 0 and 100")
            return 0.0
        return value

    def shadow(self, to: Destination, path: Path) -> str | None:
        """The name of the shadow that a destination is; None if it has no address."""
        if to.name in self.shadows:
            return to.name
        rewrite = Rewrite(host=SHADOW_SUFFIX)
        try:
            if to.name in self._resolve:
                shadow = parse_shadow(self._resolve[to.name], name=to.name, rewrite=rewrite)
            elif to.subset:
                self.wrong(path, f"a subset has no name in DNS: --resolve {to.name}=HOST:PORT")
                return None
            else:
                port = to.port or (self.ports[0] if self.ports else 80)
                shadow = Shadow(host=to.host, port=port, name=to.name, rewrite=rewrite)
        except SpecError as error:
            self.wrong(path, f"{to.name}: {str(error).removeprefix('shadow: ')}")
            return None
        self.shadows[to.name] = shadow
        return to.name


def host_condition(host: str, namespace: str) -> dict[str, str] | None:
    """What the Host field must be for a host of theirs; None: anything.

    A service may be asked for by its short name, with its namespace, with `svc`, or in full, as Istio's
    virtual hosts have it (GenerateVirtualHostDomains).
    """
    host = host.lower()
    if host == "*":
        return None
    if host.startswith("*"):
        return {"suffix": host[1:]}
    name, _, rest = host.partition(".")
    space, _, zone = rest.partition(".")
    if not rest:
        space = namespace
    elif zone != CLUSTER:
        return {"exact": host}
    parts = [re.escape(part) for part in (name, space, "svc", r"cluster.local")]
    return {"regex": r"{}(\.{}(\.{}(\.{})?)?)?".format(*parts)}
