# SPDX-License-Identifier: Apache-2.0
"""nginx's configuration language: text to directives with their lines, within bounds.

As `ngx_conf_read_token` reads it: words end at white space, `;` or `{`; quotes only begin a word; `${` is of a
variable; a backslash keeps the next character; `#` begins a comment where a word could begin.  A block of Lua
(ngx_http_lua_module) is read up to its end, and is empty here.  Nothing is expanded, and no file that is included is
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tapmirror.spec.document import FileError, Problem

MAX_BYTES: Final = 1 << 20
"""Bytes of the longest file: `nginx -T` of a large site."""
MAX_DEPTH: Final = 16
_LUA_BLOCK: Final = "_by_lua_block"
_LUA: Final = re.compile(r"--\[(=*)\[|\[(=*)\[|--[^\n]*|[\"'{}]")
"""What matters in Lua: braces, and the beginning of a text or comment, where a brace ends nothing (Lua 5.1, 2.1)."""
_LUA_TEXT: Final = {quote: re.compile(rf"(?:\\.|[^{quote}\\\n])*{quote}", re.DOTALL) for quote in "\"'"}
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", '"': '"', "'": "'", "\\": "\\"}


class Directive(msgspec.Struct):
    """`name args…;` or `name args… { block }`."""

    name: str
    args: list[str]
    line: int
    block: list[Directive] | None = None

    def all(self, name: str) -> list[Directive]:
        """The directives of a name that are directly in its block."""
        return [each for each in self.block or () if each.name == name]

    def last(self, name: str) -> Directive | None:
        """The last directive of a name that is directly in its block."""
        found = self.all(name)
        return found[-1] if found else None


def decoded(data: bytes) -> str:
    """The text of a file.  Raises `FileError`."""
    if len(data) > MAX_BYTES:
        raise FileError([Problem(0, "", f"longer than {MAX_BYTES >> 20} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError([Problem(data.count(b"\n", 0, error.start) + 1, "", "not UTF-8")]) from None


def parse(text: str, begins: int = 1) -> Directive:
    """The whole text, which begins at a line, as the block of a directive without a name.  Raises `FileError`."""
    top = Directive("", [], 0, [])
    stack = [top]
    words: list[str] = []
    first = 0
    for word, line, plain in _words(text, begins):
        if not plain or word not in (";", "{", "}"):
            if not words:
                first = line
            words.append(word)
            continue
        block = stack[-1].block
        assert block is not None
        if word == "}":
            if words:
                raise FileError([Problem(line, words[0], "; is missing before }")])
            if len(stack) == 1:
                raise FileError([Problem(line, "", "} without {")])
            stack.pop()
            continue
        if not words:
            if word == "{":
                raise FileError([Problem(line, "", "{ without a name before it")])
            raise FileError([Problem(line, "", "; without a directive before it")])
        found = Directive(words[0], words[1:], first)
        block.append(found)
        words = []
        if word == "{":
            if len(stack) > MAX_DEPTH:
                raise FileError([Problem(line, found.name, f"nested deeper than {MAX_DEPTH} levels")])
            found.block = []
            stack.append(found)
    if words:
        raise FileError([Problem(first, words[0], "the file ends before its ; or {")])
    if len(stack) > 1:
        raise FileError([Problem(stack[-1].line, stack[-1].name, "its } is missing")])
    return top


def _words(text: str, line: int) -> Iterator[tuple[str, int, bool]]:
    """(word, line, whether it is neither quoted nor escaped); `;`, `{` and `}` are words, and what is Lua is none."""
    at, size = 0, len(text)
    name = ""
    while at < size:
        c = text[at]
        if c in " \t\r\n":
            line += c == "\n"
            at += 1
        elif c == "#":
            end = text.find("\n", at)
            at = size if end < 0 else end
        elif c in ";{}":
            yield c, line, True
            at += 1
            if c == "{" and name.endswith(_LUA_BLOCK):
                end = _lua_end(text, at, name, line)
                line += text.count("\n", at, end)
                at = end
            name = ""
        else:
            began = line
            word, at, line = _quoted(text, at, line) if c in "\"'" else _bare(text, at, line)
            name = name or word
            yield word, began, False


def _lua_end(text: str, at: int, name: str, line: int) -> int:
    """Where the brace is that ends a block of Lua, which begins on a line."""
    depth, begins = 1, at
    while (found := _LUA.search(text, at)) is not None:
        at = found.end()
        if found[0] in _LUA_TEXT:
            rest = _LUA_TEXT[found[0]].match(text, at)
            at = -1 if rest is None else rest.end()
        elif found[1] is not None or found[2] is not None:
            end = f"]{found[1] or found[2] or ''}]"
            place = text.find(end, at)
            at = -1 if place < 0 else place + len(end)
        else:
            depth += {"{": 1, "}": -1}.get(found[0], 0)
            if not depth:
                return found.start()
        if at < 0:
            line += text.count("\n", begins, found.start())
            raise FileError([Problem(line, name, "a text or comment in its Lua does not end")])
    raise FileError([Problem(line, name, "the } that ends its Lua is missing")])


def _quoted(text: str, at: int, line: int) -> tuple[str, int, int]:
    quote, began = text[at], line
    parts: list[str] = []
    at += 1
    while at < len(text):
        c = text[at]
        if c == quote:
            if text[at + 1 : at + 2] not in ("", " ", "\t", "\r", "\n", ";", "{", ")"):
                raise FileError([Problem(line, "", f"{text[at + 1]!r} right behind a quoted text")])
            return "".join(parts), at + 1, line
        line += c == "\n"
        c, at = _character(text, at)
        parts.append(c)
    raise FileError([Problem(began, "", f"the closing {quote} is missing")])


def _bare(text: str, at: int, line: int) -> tuple[str, int, int]:
    parts: list[str] = []
    while at < len(text) and text[at] not in " \t\r\n;":
        if text[at] == "{":
            if not parts or parts[-1] != "$":
                break
            end = text.find("}", at)
            if end < 0 or "\n" in text[at:end]:
                raise FileError([Problem(line, "", "${ without }")])
            parts.append(text[at : end + 1])
            at = end + 1
            continue
        c, at = _character(text, at)
        parts.append(c)
    return "".join(parts), at, line


def _character(text: str, at: int) -> tuple[str, int]:
    """The character at a place, and where the next one is; a backslash before one that is not special stays."""
    c = text[at]
    if c != "\\" or at + 1 >= len(text):
        return c, at + 1
    following = text[at + 1]
    return _ESCAPES.get(following, c + following), at + 2
