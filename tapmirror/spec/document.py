# SPDX-License-Identifier: Apache-2.0
"""Reads YAML text as plain data that knows its lines, within bounds.

Nothing is constructed but texts, numbers, truth values, lists and mappings.  A file of some
kilobytes can stand for gigabytes (aliases of aliases) or nest deeper than any stack: so what is read is counted, and
beyond a bound the file is refused.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import msgspec
import yaml

from tapmirror.spec.errors import shown

_MERGE: Final = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`: a mapping, or several, whose fields count unless the mapping with this key has them itself."""
MAX_BYTES: Final = 256 << 10
"""Bytes of the longest file, with hundreds of rules; PyYAML reads it in seconds."""
MAX_NODES: Final = 50_000
MAX_DEPTH: Final = 32
EXPONENT: Final = re.compile(r"[-+]?(?:[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)[eE][-+]?[0-9]+", re.ASCII)
"""A number to YAML 1.2, a text to PyYAML, which reads 1.1; its numbers to base 60 (`80:22`) are texts here."""
_HALF: Final = re.compile("[\ud800-\udfff]")

Path: TypeAlias = tuple[str | int, ...]
"""Where a value is: keys and indexes from the top of its document."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with a file."""

    line: int
    """Counted from 1; 0: it belongs to no line."""
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.line}: " if self.line else ""
        path = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.path)
        return f"{where}{path}: {self.message}" if path else f"{where}{self.message}"

    def of(self, file: object) -> str:
        """The problem in one line, with the file's name in front."""
        return f"{file}:{'' if self.line else ' '}{self}"


class FileError(ValueError):
    """All that is wrong with a file."""

    def __init__(self, found: list[Problem]) -> None:
        super().__init__("; ".join(map(str, found)))
        self.found = sorted(found, key=lambda problem: problem.line)


class Document(msgspec.Struct):
    """One document of a file."""

    data: Any
    lines: dict[Path, int]
    """Lines of every value, and of every key's value, by path."""
    problems: list[Problem]
    """What is wrong with it as YAML, although it could be read."""

    def line(self, path: Path) -> int:
        """The line of a value or, if that has none, of the innermost thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def dotted(path: Path) -> str:
    """A path as it is written: `shadows[0].rewrite.host`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def load(data: bytes) -> list[Document]:
    """All documents of a YAML file that say something.  Raises `FileError`."""
    if len(data) > MAX_BYTES:
        raise FileError([Problem(0, "", f"longer than {MAX_BYTES >> 10} KiB: no tap needs that")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError([Problem(data.count(b"\n", 0, error.start) + 1, "", "not UTF-8")]) from None
    try:
        nodes = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
    except RecursionError:
        raise FileError([Problem(0, "", f"nested deeper than {MAX_DEPTH} levels")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FileError([Problem(mark.line + 1 if mark else 0, "", f"not YAML: {_one_line(error.problem)}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileError([Problem(line, "", f"a character that YAML does not allow: {_character(error)}")]) from None
    except (
        ValueError,
        OverflowError,
    ) as error:  # `"\U00110000"`, `%YAML 1.` and thousands of digits: nothing tells where
        raise FileError([Problem(0, "", f"not YAML: {_one_line(str(error))}")]) from None
    builder = _Builder()
    documents = []
    for node in nodes:
        builder.lines, builder.found = {}, []
        plain = builder.build(node, ())
        if plain is not None or builder.found:
            documents.append(Document(plain, builder.lines, builder.found))
    return documents


class _Builder:
    """Turns YAML nodes into plain data."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.found: list[Problem] = []
        self._constructor = yaml.constructor.SafeConstructor()
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > MAX_NODES:
            raise FileError([Problem(line, dotted(path), f"more than {MAX_NODES} values, aliases counted in full")])
        if len(path) > MAX_DEPTH:
            raise FileError([Problem(line, dotted(path[:4]), f"nested deeper than {MAX_DEPTH} levels")])
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # there is no other kind
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.found.append(Problem(line, dotted(path), "a key is not a text"))
                continue
            key = self._text(key_node, path)
            if key_node.tag == _MERGE:
                found = self.build(value_node, (*path, key))
                for each in found if isinstance(found, list) else [found]:
                    if isinstance(each, dict):
                        merged = each | merged  # the first has its way
                    else:
                        self.found.append(Problem(line, dotted((*path, key)), f"{shown(each)} is not a mapping"))
                continue
            if key in built:
                self.found.append(Problem(line, dotted((*path, key)), "given twice"))
            built[key] = self.build(value_node, (*path, key))
            self.lines[(*path, key)] = line
        return merged | built

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = self._text(node, path)
        tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if tag in ("int", "float", "bool", "null"):
            if ":" in text:
                return text
            try:
                return self._constructor.construct_object(node)
            except (ValueError, OverflowError, LookupError):  # `!!int ''`, `!!bool x`
                return text
        if tag == "str" and node.style is None and EXPONENT.fullmatch(text):
            return float(text)
        if tag not in ("str", "timestamp", "value", "merge"):
            self.found.append(
                Problem(node.start_mark.line + 1, dotted(path), f"the tag {shown(tag)} is not known here")
            )
        return text

    def _text(self, node: yaml.ScalarNode, path: Path) -> str:
        """The text as it was written, except for characters that are escaped as two halves, as JSON does: YAML takes
        these for two.
        """
        text = str(node.value)
        if _HALF.search(text) is None:
            return text
        pairs = text.encode("utf-16-le", "surrogatepass")
        try:
            return pairs.decode("utf-16-le")
        except UnicodeDecodeError:
            self.found.append(Problem(node.start_mark.line + 1, dotted(path), "half of a character (a surrogate)"))
            return pairs.decode("utf-16-le", "replace")


def _character(error: yaml.reader.ReaderError) -> str:
    character = error.character
    return f"U+{ord(character) if isinstance(character, str) else character:04X}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
