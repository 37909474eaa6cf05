# SPDX-License-Identifier: Apache-2.0
"""docs/JSON.md names the fields of a report, and no others; those of a daemon's answers are looked at in the lab."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import typing
from typing import Any

import msgspec
import pytest

from documented import named, rows, section
from tapmirror.compare.figures import EndpointFigures, Figures
from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger


def structs(kind: Any) -> set[type[msgspec.Struct]]:
    """The structures that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return {kind}.union(*(structs(hint) for hint in hints.values()))
    return set().union(*(structs(each) for each in typing.get_args(kind)))


def names(*kinds: type[msgspec.Struct]) -> set[str]:
    return {name for kind in kinds for name in kind.__struct_fields__}


def test_every_field_of_a_report_is_named() -> None:
    assert names(*structs(Figures)) - named("A report") == set()


def test_every_row_is_a_field_of_a_report() -> None:
    assert rows("A report") == names(Figures, EndpointFigures) | {"samples"}


def ledger(tap: str, *, lost: int) -> dict[str, Any]:
    """Of a tap that saw 1000 requests and was to mirror 800 of them."""
    found = Ledger()
    found.requests.seen, found.requests.sampled_out, found.requests.mirrored = 1000, 150, 800 - lost
    found.requests.filtered[FilterReason.DUPLICATE] = 50
    if lost:
        found.requests.dropped[DropReason.SHADOW_SLOW] = lost - 1
        found.requests.dropped[DropReason.GAP] = 1
    snapshot = found.snapshot()
    assert snapshot["requests"]["unaccounted"] == 0
    return {"tap": tap, **snapshot}


def blocks() -> list[str]:
    """The programs that the section has."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section("Loss, read by a program"), re.M)
    return [textwrap.dedent(each).strip("\n") for each in found]


def ran(words: list[str], document: object) -> list[str]:
    done = subprocess.run(words, input=json.dumps(document), capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


NONE = {"name": "new", "state": "starting", "ledger": None}
ONE, TWO = ledger("web", lost=8), ledger("other", lost=0)
WEB = ["web: {0} % of 800 requests lost", "  shadow_slow: 7", "  gap: 1"]


@pytest.mark.parametrize(
    ("document", "taps"),
    [(ONE, "web"), ({"taps": [TWO, ONE]}, "other web"), ({"taps": [{"name": "web", "ledger": ONE}, NONE]}, "web")],
    ids=["run", "run of several", "status"],
)
def test_the_program_that_reads_the_loss_runs(document: object, taps: str) -> None:
    _, program = blocks()
    found = ran([sys.executable, "-c", program], document)
    wanted = {"web": [line.format("1.000") for line in WEB], "other": ["other: 0.000 % of 800 requests lost"]}
    told = [line for line in found if not line.endswith(("segments lost", "bytes lost"))]
    assert told == [line for tap in taps.split() for line in wanted[tap]]
    assert len(found) - len(told) == 2 * len(taps.split())


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq")
def test_the_line_for_jq_that_reads_the_loss_runs() -> None:
    line, _ = blocks()
    (command, program) = re.fullmatch(r"(.* --json \| jq -r) '(.*)'", line, re.S).groups()  # type: ignore[union-attr]
    assert command.startswith("tapmirror run ")
    assert ran(["jq", "-r", program], ONE) == [each.format(1) for each in WEB]
    several = ran(["jq", "-r", program], {"taps": [TWO, ONE]})
    assert several == ["other: 0 % of 800 requests lost", *(each.format(1) for each in WEB)]
