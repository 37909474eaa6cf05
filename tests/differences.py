# SPDX-License-Identifier: Apache-2.0
"""What two responses are said to differ in, for tests."""

from __future__ import annotations

import json
import re
from typing import Any

from tapmirror.compare.diff import compare
from tapmirror.compare.rules import Rules
from tapmirror.exchange import Response
from tapmirror.spec import Compare, Level


def rules(level: Level = Level.BODY, **spec: Any) -> Rules:
    patterns = spec.get("ignore_patterns", ())
    return Rules(Compare(level=level, **spec), [re.compile(text) for text in patterns])


def response(body: bytes = b"", status: int = 200, type_: str = "application/json", **more: str) -> Response:
    lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {type_}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return Response(status, ("\r\n".join(lines) + "\r\n\r\n").encode(), body, len(body))


def found(one: Response, other: Response, **spec: Any) -> list[str]:
    return [each.field for each in compare(one, other, rules(**spec)).found]


def doc(one: Any, other: Any, **spec: Any) -> list[str]:
    return found(response(json.dumps(one).encode()), response(json.dumps(other).encode()), **spec)
