# SPDX-License-Identifier: Apache-2.0
"""The reference of the file, generated from the types: JSON Schema, and an example with every field.

The meaning of a field is the text below it in the source.
"""

from __future__ import annotations

import ast
import enum
import inspect
import textwrap
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from tapmirror.spec.compare import Compare, Level
from tapmirror.spec.match import Match, Text
from tapmirror.spec.numbers import TIME
from tapmirror.spec.reading import SINGULAR, in_percent
from tapmirror.spec.sampled import Ramp
from tapmirror.spec.shadow import Shadow
from tapmirror.spec.tap import Hook, Mirror, Rule, TapSpec

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
WIDTH: Final = 100


@cache
def field_docs(cls: type) -> dict[str, str]:
    """What each field of a structure means, by its name in files; its bases' fields included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return {field.encode_name: found[field.name] for field in msgspec.structs.fields(cls) if field.name in found}


def structures() -> list[type]:
    """Every structure of a tap, each before those within it."""
    found: list[type] = []

    def visit(kind: types.Type) -> None:
        if isinstance(kind, types.StructType):
            if kind.cls not in found:
                found.append(kind.cls)
                for field in kind.fields:
                    visit(field.type)
        elif isinstance(kind, types.UnionType):
            for each in kind.types:
                visit(each)
        elif isinstance(kind, types.VarTupleType):
            visit(kind.item_type)
        elif isinstance(kind, types.DictType):
            visit(kind.value_type)

    visit(types.type_info(TapSpec))
    return found


# --- JSON Schema


def schema() -> dict[str, Any]:
    """JSON Schema of a file: one tap, or a list of them under `taps`."""
    (_,), components = msgspec.json.schema_components([TapSpec], ref_template="#/$defs/{name}")
    for cls in structures():
        part = components[cls.__name__]
        for name, text in field_docs(cls).items():
            part["properties"][name]["description"] = text
        for name in _times(cls):
            field = part["properties"][name]
            field.get("anyOf", [field])[0].update(type=["number", "string"], pattern=f"^{TIME}$")
    _sweeten(components)
    whole = {
        "$schema": DIALECT,
        "title": "Taps of tapmirror",
        "anyOf": [
            {"$ref": "#/$defs/TapSpec"},
            {
                "type": "object",
                "properties": {"taps": {"type": "array", "items": {"$ref": "#/$defs/TapSpec"}, "minItems": 1}},
                "required": ["taps"],
                "additionalProperties": False,
            },
        ],
        "$defs": components,
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))
    return plain


def _times(cls: type) -> list[str]:
    """The fields whose value is a length of time."""
    info = types.type_info(cls)
    assert isinstance(info, types.StructType)
    return [field.encode_name for field in info.fields if _kind(field.type) == "TIME"]


def _sweeten(components: dict[str, Any]) -> None:
    """Add the short forms (see `reading.sugar`)."""
    tap = components["TapSpec"]
    required: list[dict[str, Any]] = []
    for one, many in SINGULAR.items():
        tap["properties"][one] = {**tap["properties"][many]["items"], "description": f"For `{many}`: one of them."}
        if many in tap["required"]:
            tap["required"].remove(many)
            required.append({"oneOf": [{"required": [one]}, {"required": [many]}]})
        else:
            required.append({"not": {"required": [one, many]}})
    tap["allOf"] = required
    shadow = components[Shadow.__name__]
    shadow["properties"]["to"] = {"type": "string", "description": "`HOST:PORT`, for `host` and `port`."}
    del shadow["required"]
    shadow["oneOf"] = [{"required": ["to"]}, {"required": ["host", "port"]}]
    levels = [*(level.value for level in Level), False]  # what YAML makes of off
    compare = components[Compare.__name__]
    compare["properties"]["level"] = {**compare["properties"]["level"], "enum": levels}
    compare["properties"]["level"].pop("$ref", None)
    for each in (Compare, TapSpec, Shadow, Rule, Mirror, Ramp):
        for name in in_percent(each):
            components[each.__name__]["properties"][name]["type"] = ["number", "string"]
    components[Compare.__name__] = {"anyOf": [{"enum": levels}, compare]}
    for cls in (Shadow, Text, Hook, Mirror):
        components[cls.__name__] = {"anyOf": [{"type": "string"}, components[cls.__name__]]}
    for owner in (shadow, components[Rule.__name__]):
        match = owner["properties"]["match"]
        owner["properties"]["match"] = {
            "anyOf": [{"$ref": f"#/$defs/{Match.__name__}"}, {"type": "array", "items": match["items"]}],
            "description": match.get("description", ""),
        }
    mirror = components[Rule.__name__]["properties"]["mirror"]
    mirror["anyOf"].append({"type": "string"})


# --- the example


def example() -> str:
    """A file with every field: required ones with a possible value, all others as a comment with the default."""
    lines = ["# A tap of tapmirror.  A field that is commented out shows its default, or the form of its value."]
    lines += ["# Times are in seconds; 90s, 15m, 1h30m or 2d can be written too.", ""]
    lines += _fields(TapSpec, {"iface": "eth0", "ports": "[80]", "shadows": "[staging.internal:8080]"})
    for cls in structures()[1:]:
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        lines += ["", *textwrap.wrap(f"--- {_WHERE[cls.__name__]}: {summary}", WIDTH, **_COMMENT)]
        lines += _fields(cls, {}, required="# required: ")
    return "\n".join(lines) + "\n"


_COMMENT: Final[dict[str, Any]] = {"initial_indent": "# ", "subsequent_indent": "# "}
_WHERE: Final = {
    "Shadow": "each of shadows",
    "Ramp": "ramp, of a tap, rule, mirror or shadow",
    "Match": "match, of a rule or shadow",
    "Text": "a condition on a text",
    "Size": "body, of a match",
    "Rewrite": "rewrite, of a shadow",
    "PathRewrite": "path, of a rewrite",
    "Tls": "tls, of a shadow",
    "Rule": "each of rules",
    "Mirror": "each of mirror, of a rule",
    "BodyLimit": "body, of a rule",
    "Redact": "redact",
    "Hook": "hook",
    "Limits": "limits",
    "Budget": "budget",
    "Compare": "compare",
}


def _fields(cls: type, given: dict[str, str], required: str = "") -> list[str]:
    lines = []
    docs = field_docs(cls)
    info = types.type_info(cls)
    assert isinstance(info, types.StructType)
    for field in sorted(info.fields, key=lambda each: not each.required):
        name = field.encode_name
        if name in docs:
            lines += textwrap.wrap(docs[name], WIDTH, **_COMMENT)
        if name in given:
            lines.append(f"{name}: {given[name]}")
        elif field.required:
            lines.append(f"{required}{name}: {_kind(field.type)}")
        else:
            lines.append(f"# {name}: {_default(field)}")
    return lines


def _default(field: types.Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        others = " | ".join(str(each.value) for each in type(value))
        return f"{value.value}   # {others}"
    if value is None or value in ((), {}) or isinstance(value, msgspec.Struct):
        return _kind(field.type)
    return msgspec.json.encode(value).decode()


def _kind(kind: types.Type) -> str:
    """How a value of this type is written."""
    if isinstance(kind, types.UnionType):
        (kind,) = [each for each in kind.types if not isinstance(each, types.NoneType | types.LiteralType)]
    if isinstance(kind, types.Metadata):
        return "TIME"
    if isinstance(kind, types.StructType):
        return "{…}"
    if isinstance(kind, types.VarTupleType):
        return f"[{_kind(kind.item_type)}, …]"
    if isinstance(kind, types.DictType):
        return f"{{NAME: {_kind(kind.value_type)}}}"
    return {types.StrType: "TEXT", types.IntType: "N", types.FloatType: "N", types.BoolType: "false"}.get(
        type(kind), "…"
    )
