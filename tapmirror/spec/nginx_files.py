# SPDX-License-Identifier: Apache-2.0
"""What `nginx -T` prints as the one configuration that it is: each file stands where it is included.

It prints every file once, behind a comment with its path, the main one first.  What is no such text is one file, of
which `include` stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from tapmirror.spec.document import FileError, Problem
from tapmirror.spec.nginx_syntax import MAX_DEPTH, Directive, decoded, parse

MAX_DIRECTIVES: Final = 100_000
"""Directives of the whole configuration at most: 1 MiB of text has fewer, but a file can be included many times."""
_FILE: Final = re.compile(r"^# configuration file (.+):\r?$", re.MULTILINE)
_BEFORE: Final = re.compile(r"(?:(?:nginx: .*|[ \t\r]*(?:#.*)?)\n)*+")
"""What may stand before the first file: nginx's own messages, and comments."""
_PATTERN: Final = re.compile(r"[*?\[]")


def read(data: bytes) -> Directive:
    """A configuration as the block of a directive without a name; lines are those of `data`.  Raises `FileError`."""
    text = decoded(data)
    marks = list(_FILE.finditer(text))
    if not marks or _BEFORE.fullmatch(text, 0, marks[0].start()) is None:  # a file with such a comment
        return parse(text)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    files = {
        PurePosixPath(mark[1]): parse(text[mark.end() : end], text.count("\n", 0, mark.end()) + 1)
        for mark, end in zip(marks, ends, strict=True)
    }
    top = next(iter(files.values()))
    return Directive("", [], 0, _Files(files).whole(top.block or [], 0))


class _Files:
    """Files by path, the main one first."""

    def __init__(self, files: dict[PurePosixPath, Directive]) -> None:
        self._files = files
        self._root = next(iter(files)).parent
        """What relative paths of `include` begin at: the directory of the main file."""
        self._left = MAX_DIRECTIVES

    def whole(self, block: list[Directive], depth: int) -> list[Directive]:
        """A block with the files that it includes."""
        found: list[Directive] = []
        for each in block:
            self._left -= 1
            if self._left < 0 or depth > MAX_DEPTH:
                raise FileError([Problem(each.line, each.name, "files that are included include too much")])
            if each.name != "include" or len(each.args) != 1:
                inner = None if each.block is None else self.whole(each.block, depth)
                found.append(Directive(each.name, each.args, each.line, inner))
                continue
            files = list(self._matching(each.args[0]))
            for file in files:
                found += self.whole(file.block or [], depth + 1)
            if not files and not _PATTERN.search(each.args[0]):  # of a pattern there may be none
                found.append(each)
        return found

    def _matching(self, wanted: str) -> Iterator[Directive]:
        """The files that an `include` names, in the order of glob(3)."""
        path = self._root / wanted
        if path in self._files:
            yield self._files[path]
        elif _PATTERN.search(wanted):
            yield from (self._files[each] for each in sorted(self._files) if each.match(str(path)))
