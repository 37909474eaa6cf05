# SPDX-License-Identifier: Apache-2.0
"""What the translators of other tools' configurations share: the tap as it is written in a file, and what it lacks."""

from __future__ import annotations

import re
import textwrap
from typing import Any, Final

import msgspec
import yaml

from tapmirror.spec.document import EXPONENT, Document, Problem
from tapmirror.spec.match import regex_error
from tapmirror.spec.reading import taps_of

IFACE: Final = "eth0"
"""Stands for the interface where neither the other tool's configuration nor the user names one."""
UNNAMED: Final = f"no interface is named: {IFACE} stands for it; say which with --iface"
_PLAIN: Final = re.compile(r"(\^?)([A-Za-z0-9_/\-]+)(\$?)")
_SPECIAL: Final = re.compile(r"[^A-Za-z0-9_/\-]")


class _Plain(yaml.SafeDumper):
    """Writes everything out, without anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# A text that we would read as a number is put in quotes.
_Plain.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{EXPONENT.pattern})\\Z"), [*"-+.0123456789"])


class Translation(msgspec.Struct):
    """Taps as plain data of a file, and what of the original is not in them."""

    taps: list[dict[str, Any]] = []
    left_out: list[Problem] = []

    def missing(self, line: int, path: str, message: str) -> None:
        """Note something that has no equivalent, or another meaning here."""
        self.left_out.append(Problem(line, path, message))

    def check(self) -> None:
        """Raises `FileError` if what was made of it is no valid tap."""
        taps_of([Document(tap, {}, []) for tap in self.taps])

    def text(self, origin: str) -> str:
        """The file, with what it lacks as comments at its top."""
        lines = [f"# Made from {origin}."]
        for problem in self.left_out:
            said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(problem))
            lines += textwrap.wrap(said, 116, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False)
        documents = self.taps[0] if len(self.taps) == 1 else {"taps": self.taps}
        body = yaml.dump(documents, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=116)
        return "\n".join([*lines, "", body])


def searched(expression: str) -> dict[str, Any]:
    """A condition that holds where the expression matches somewhere in the text.  Raises ValueError."""
    plain = _PLAIN.fullmatch(expression)
    if plain is not None and (plain[1] or plain[3]):
        return {("exact" if plain[3] else "prefix") if plain[1] else "suffix": plain[2]}
    wrong = regex_error(expression)
    if wrong is not None:
        raise ValueError(wrong)
    return {"regex": f".*(?:{expression}).*"}


def literally(text: str) -> str:
    """A text as an expression that matches just it."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


def as_template(text: str) -> str:
    """A constant text as a template of ours."""
    return text.replace("{", "{{").replace("}", "}}")


def whole_path(becomes: str) -> dict[str, str]:
    """A rewrite of whatever the path is."""
    return {"regex": "^.*$", "with": becomes.replace("\\", "\\\\")}
