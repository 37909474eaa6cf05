# SPDX-License-Identifier: Apache-2.0
"""Reads plain data as `TapSpec`: every field is checked against its type, and everything that is wrong is reported at
once.

The types are the only description: what a field may be is read from them (`msgspec.inspect`).  In addition there are
short forms, which `sugar` converts to the long form before anything is checked:

* `port`, `shadow`, `addr`, `rule`: one value instead of a list of one;
* a shadow as `HOST:PORT` (also as `to:` within a structure);
* a condition on a text as the text itself (`exact`); a single `match` structure instead of a list;
* `mirror: none`, `mirror: all`, `mirror: NAME`, `mirror: [NAME, …]`;
* `hook: package.module:function`;
* `compare: LEVEL`; for YAML 1.1 `off` is false;
* what is in percent as `5%`;
* seconds as `90s`, `15m`, `1h30m`, `2d` (`numbers`).
"""

from __future__ import annotations

import math
import types
from collections.abc import Collection
from functools import cache
from typing import Any, Final

from msgspec import inspect

from tapmirror.spec.budget import Budget
from tapmirror.spec.compare import PERCENT, Compare
from tapmirror.spec.document import Document, FileError, Path, Problem, dotted, load
from tapmirror.spec.errors import SpecError, shown
from tapmirror.spec.match import Text
from tapmirror.spec.numbers import number_of, seconds_of
from tapmirror.spec.sampled import Ramp, Sampled
from tapmirror.spec.settings import Settings
from tapmirror.spec.shadow import Shadow, parse_shadow
from tapmirror.spec.tap import Hook, Rule, TapSpec, slips

SINGULAR: Final = {"port": "ports", "shadow": "shadows", "addr": "addrs", "rule": "rules"}
"""Fields of a tap that may be written with one value, and the lists that they are one of."""
_WAYS: Final[dict[type, dict[str, tuple[str, ...]]]] = {
    TapSpec: {one: (many,) for one, many in SINGULAR.items()},
    Shadow: {"to": ("host", "port")},
}
"""Pairs of fields that say the same thing in two ways; only one of the two may be written."""
_TITLES: Final = {
    "TapSpec": "a tap",
    "Settings": "daemon.yaml",
    "AllTaps": "the budget of all taps",
    "Limits": "limits",
    "Compare": "compare",
    "Redact": "redact",
    "Rewrite": "rewrite",
    "Tls": "tls",
    "BodyLimit": "a body limit",
    "PathRewrite": "a path rewrite",
    "Text": "a text condition",
}
"""What messages call structures, where the name of the class would not be understood."""
_ABSENT: Final = object()
_NAMES: Final[dict[type, str]] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@cache
def _fields(cls: type) -> dict[str, inspect.Field]:
    """The fields of a structure, by their names in files.

    Kept, because finding them takes milliseconds, and a file may have thousands of taps.
    """
    known = inspect.type_info(cls)
    assert isinstance(known, inspect.StructType)
    return {field.encode_name: field for field in known.fields}


def read_taps(data: bytes) -> list[TapSpec]:
    """All taps of a YAML file.  Raises `FileError` with everything that is wrong."""
    return taps_of(load(data))


def taps_of(documents: list[Document], *, kept: bool = False, auto: int = 1) -> list[TapSpec]:
    """The taps of documents, each one tap or a list under `taps`.  Raises `FileError`.  `kept`: they were accepted
    before, so slips are let pass (`TapSpec.slips`; for `auto`, see there).
    """
    found = [problem for document in documents for problem in document.problems]
    taps: list[TapSpec] = []
    names: set[str] = set()
    for document in documents:
        reader = _Reader(document, found, kept, auto)
        data = document.data
        items: list[tuple[Path, Any]] = [((), data)]
        if isinstance(data, dict) and set(data) == {"taps"}:
            taps_there = data["taps"]
            if not isinstance(taps_there, list):
                found.append(Problem(document.line(("taps",)), "taps", f"{shown(taps_there)} is not a list of taps"))
                continue
            items = [(("taps", i), item) for i, item in enumerate(taps_there)]
        for path, item in items:
            taps += reader.tap(item, path)
            name = item.get("name", "tap") if isinstance(item, dict) else None
            if isinstance(name, str) and name in names:
                where = (*path, "name")
                message = f"{shown(name)} is the name of more than one tap"
                found.append(Problem(document.line(where), dotted(where), message))
            elif isinstance(name, str):
                names.add(name)
    if not taps and not found:
        found.append(Problem(0, "", "no tap in it"))
    if found:
        raise FileError(found)
    return taps


def read_settings(data: bytes) -> Settings:
    """The settings in a `daemon.yaml`, which has one document; without any, all are defaults.  Raises `FileError`."""
    documents = load(data)
    found = [problem for document in documents for problem in document.problems]
    if len(documents) > 1:
        found.append(Problem(documents[1].line(()), "", "a second document: there is one"))
    settings = [_Reader(document, found).structure(document.data, Settings, ()) for document in documents[:1]]
    if found:
        raise FileError(found)
    return settings[0] if settings else Settings()


class _Reader:
    """Converts the values of one document to structures."""

    def __init__(self, document: Document, found: list[Problem], kept: bool = False, auto: int = 1) -> None:
        self._document = document
        self._found = found
        self._kept = kept
        self._auto = auto

    def tap(self, data: Any, path: Path) -> list[TapSpec]:
        """The tap; None if something is wrong with it, which has then been reported."""
        known = len(self._found)
        tap = self.structure(data, TapSpec, path)
        return [tap] if isinstance(tap, TapSpec) and len(self._found) == known else []

    def _wrong(self, path: Path, message: str) -> Any:
        self._found.append(Problem(self._document.line(path), dotted(path), message))
        return _ABSENT

    def _value(self, data: Any, kind: inspect.Type, path: Path) -> Any:
        """Convert a value to a type; returns `_ABSENT` if that is impossible, after reporting why."""
        if isinstance(kind, inspect.UnionType):
            if data is None and kind.includes_none:
                return None
            words = [str(word) for each in kind.types if isinstance(each, inspect.LiteralType) for word in each.values]
            if isinstance(data, str) and data in words:
                return data
            (kind,) = [each for each in kind.types if not isinstance(each, inspect.NoneType | inspect.LiteralType)]
            if words and type(data) is not _SCALARS[type(kind)]:
                return self._wrong(
                    path, f"{_written(data)} is not {_NAMES[_SCALARS[type(kind)]]} or {' or '.join(words)}"
                )
        if isinstance(kind, inspect.Metadata):
            return self._seconds(data, kind.type, path)
        if isinstance(kind, inspect.StructType):
            return self.structure(data, kind.cls, path)
        if isinstance(kind, inspect.EnumType):
            return self._enum(data, kind.cls, path)
        if isinstance(kind, inspect.VarTupleType):
            return self._tuple(data, kind, path)
        if isinstance(kind, inspect.DictType):
            return self._dict(data, kind, path)
        return self._scalar(data, kind, path)

    def structure(self, data: Any, cls: type, path: Path) -> Any:
        """Convert a value to a structure; returns `_ABSENT` if that is impossible, after reporting why."""
        known_before = len(self._found)
        data = self._said_once(data, cls, path)
        try:
            data, places = sugar(data, cls)
        except SpecError as error:
            return self._wrong(path, str(error).removeprefix("shadow: "))
        if not isinstance(data, dict):
            short = "HOST:PORT, nor " if cls is Shadow else ""
            return self._wrong(path, f"{_written(data)} is not {short}a structure of {_title(cls)}")
        fields = _fields(cls)
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name not in fields:
                self._wrong((*path, name), f"no such field of {_title(cls)}{_meant(name, fields)}")
                continue
            built = self._value(value, fields[name].type, (*path, *places.get(name, (name,))))
            if built is not _ABSENT:
                values[fields[name].name] = built
        for name, field in fields.items():
            if field.required and name not in data:
                self._wrong(path, f"{name} is missing")
        # What is missing is put in, so that the other fields are checked all the same.
        missing = {field.name for field in fields.values() if field.required and field.name not in values}
        values |= {name: _STAND_INS[name] for name in missing}
        if cls is TapSpec and not self._kept:  # whatever else is wrong with it: all is told at once
            compared = data["compare"] if "compare" in values else None
            for where, message in slips(
                values.get("name", ""),
                values.get("compare", Compare()),
                values.get("budget", Budget()),
                values.get("workers", 1),
                self._auto,
                probe_given=isinstance(compared, dict) and "noise_probe" in compared,
            ):
                self._wrong((*path, *where.split(".")), message)
        try:
            built = cls(**values)
        except SpecError as error:
            for where, message in error.problems:
                place = _split(where)
                if missing and (place[:1] == ("rules",) or (place and place[0] in missing)):
                    continue
                if place and place[0] in places:  # where it was written
                    one = isinstance(data.get(place[0]), _One)
                    place = (*places[str(place[0])], *place[2 if one else 1 :])
                self._wrong((*path, *place), message)
            return _ABSENT
        return _ABSENT if len(self._found) > known_before else built

    def _said_once(self, data: Any, cls: type, path: Path) -> Any:
        """What was written.  If it says one thing in two ways, the second is reported and left out."""
        if not isinstance(data, dict):
            return data
        for name, others in _WAYS.get(cls, {}).items():
            second = [other for other in others if other in data]
            if name in data and second:
                self._wrong((*path, second[0]), f"give {name} or {' and '.join(others)}, not both")
                data = {key: value for key, value in data.items() if key not in second}
        return data

    def _enum(self, data: Any, cls: type, path: Path) -> Any:
        for member in cls:  # type: ignore[attr-defined]
            if member.value == data:
                return member
        return self._wrong(path, f"{_written(data)} is none of {', '.join(m.value for m in cls)}")  # type: ignore[attr-defined]

    def _tuple(self, data: Any, kind: inspect.VarTupleType, path: Path) -> Any:
        if not isinstance(data, list):
            return self._wrong(path, f"{_written(data)} is not a list")
        built = [self._value(item, kind.item_type, _place(path, data, i)) for i, item in enumerate(data)]
        if isinstance(kind.item_type, inspect.StructType) and kind.item_type.cls is Rule:
            built = [
                Rule() if each is _ABSENT else each for each in built
            ]  # what is wrong among the others is told too
        return _ABSENT if any(each is _ABSENT for each in built) else tuple(built)

    def _dict(self, data: Any, kind: inspect.DictType, path: Path) -> Any:
        if not isinstance(data, dict):
            return self._wrong(path, f"{_written(data)} is not a mapping")
        built = {name: self._value(value, kind.value_type, (*path, name)) for name, value in data.items()}
        return _ABSENT if any(each is _ABSENT for each in built.values()) else built

    def _seconds(self, data: Any, kind: inspect.Type, path: Path) -> Any:
        if not isinstance(data, str):
            return self._scalar(data, kind, path)
        found = seconds_of(data)
        return self._wrong(path, f"{shown(data)} is not a time like 90, 90s, 15m or 1h30m") if found is None else found

    def _scalar(self, data: Any, kind: inspect.Type, path: Path) -> Any:
        wanted = _SCALARS[type(kind)]
        if wanted is float and isinstance(data, int) and not isinstance(data, bool):
            data = float(data) if abs(data) < 1 << 53 else math.inf
        if type(data) is not wanted:
            hint = "; put it in quotes" if wanted is str and isinstance(data, int | float) else ""
            return self._wrong(path, f"{_written(data)} is not {_NAMES[wanted]}{hint}")
        return data


_STAND_INS: Final[dict[str, Any]] = {
    "iface": "lo",
    "ports": (1,),
    "shadows": (Shadow(host="x", port=1),),
    "host": "x",
    "port": 1,
    "shadow": "x",
    "start": 0.0,
    "end": 0.0,
    "over": 1.0,
    "becomes": "/",
    "call": "x:x",
    "max": 0,
}
"""Valid values of every field that is required somewhere."""
_SCALARS: Final = types.MappingProxyType(
    {inspect.StrType: str, inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
)


class _One(list[Any]):
    """A list of one value that was written as the value itself: its problems are reported without an index."""


def sugar(data: Any, cls: type) -> tuple[Any, dict[str, Path]]:
    """The long form of what was written for a structure, and where its fields are written, if elsewhere.

    Raises `SpecError`.
    """
    if cls is Text and isinstance(data, str):
        return {"exact": data}, {}
    if cls is Hook and isinstance(data, str):
        return {"call": data}, {"call": ()}
    if cls is Compare:
        return _compare(data)
    if cls.__name__ == "Mirror" and isinstance(data, str):
        return {"shadow": data}, {"shadow": ()}
    if cls is Shadow and isinstance(data, str):
        found = parse_shadow(data)
        return {"host": found.host, "port": found.port}, {"host": (), "port": ()}
    if not isinstance(data, dict):
        return data, {}
    data = dict(data)
    _read_percent(data, in_percent(cls))
    places: dict[str, Path] = {}
    if cls is Shadow and isinstance(data.get("to"), str) and "host" not in data and "port" not in data:
        found = parse_shadow(data.pop("to"))
        data |= {"host": found.host, "port": found.port}
        places = {"host": ("to",), "port": ("to",)}
    if cls is TapSpec:
        for one, many in SINGULAR.items():
            if one in data:
                data[many] = _One([data.pop(one)])
                places[many] = (one,)
    if cls in (Shadow, Rule) and isinstance(data.get("match"), dict):
        data["match"] = _One([data["match"]])
    if cls is Rule and isinstance(data.get("mirror"), str):
        word = data["mirror"]
        data["mirror"] = [] if word == "none" else None if word == "all" else _One([word])
    return data, places


def _compare(data: Any) -> tuple[Any, dict[str, Path]]:
    if isinstance(data, str | bool):
        return {"level": data or "off"}, {"level": ()}
    if not isinstance(data, dict):
        return data, {}
    data = dict(data)
    if data.get("level") is False:
        data["level"] = "off"
    _read_percent(data, in_percent(Compare))
    return data, {}


def in_percent(cls: type) -> Collection[str]:
    """The fields, as files name them, whose numbers are in percent and may have a percent sign."""
    if cls is Compare:
        return PERCENT
    return ("from", "to") if cls is Ramp else ("percent",) if issubclass(cls, Sampled) else ()


def _read_percent(data: dict[str, Any], names: Collection[str]) -> None:
    for name in names:
        text = data.get(name)
        if isinstance(text, str) and text.endswith("%"):
            found = number_of(text[:-1])
            data[name] = text if found is None else found


def _place(path: Path, data: list[Any], index: int) -> Path:
    return path if isinstance(data, _One) else (*path, index)


def _written(data: Any) -> str:
    """A value as it is quoted in a message.  If YAML 1.1 reads some words as this value, the message says so to who
    wrote one of them.
    """
    return f"{str(data).lower()} (or {'yes, on' if data else 'no, off'})" if isinstance(data, bool) else shown(data)


def _title(cls: type) -> str:
    return _TITLES.get(cls.__name__, f"a {cls.__name__.lower()}")


def _meant(name: str, fields: dict[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*fields, *SINGULAR], 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _split(field: str) -> Path:
    """`a[0].b` as a path.  What follows the first two parts is a name chosen by the user, which may have dots."""
    if not field:
        return ()
    head, _, rest = field.partition(".")
    name, _, index = head.partition("[")
    first: Path = (name, int(index[:-1])) if index else (name,)
    if not rest:
        return first
    if index:
        return (*first, *_split(rest))
    return (*first, rest)
