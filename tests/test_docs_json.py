# SPDX-License-Identifier: Apache-2.0
"""docs/JSON.md names the fields of a report, and no others; those of a daemon's replies are looked at in the lab."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capture_files import pcap
from documented import named, rows, section
from runner import CliRunner
from tapmirror.cli.main import main
from tapmirror.compare.figures import EndpointFigures, Figures
from tapmirror.doctor import Finding, Level
from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger
from tapmirror.spec import Shadow, TapSpec
from tapmirror.supervisor.log import Line
from tapmirror.supervisor.plan import Action, Step
from test_offline import GET, Talk


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


def row(command: str) -> set[str]:
    """The words in backquotes of what a command prints."""
    lines = [line.split("|") for line in section("The other commands").splitlines() if line.startswith("| `")]
    (told,) = [cells[2] for cells in lines if f"`{command}`" in cells[1]]
    return {word for code in re.findall(r"`([^`]+)`", told) for word in re.findall(r"\w+", code)}


def test_what_doctor_plans_logs_and_streams_print_is_named(tmp_path: Path) -> None:
    assert row("doctor") == names(Finding) | {"can_start", "findings"} | {level.value for level in Level}
    assert row("logs") == names(Line)
    spec = TapSpec(iface="lo", ports=(80,), shadows=(Shadow(host="h", port=80),))
    told = Step("a", Action.ADD, spec).told()
    assert row("apply") == {"plan", "failed", "waits", *told, *(action.value for action in Action)}
    talk = Talk()
    talk.put(0, GET)
    file = tmp_path / "a.pcap"
    file.write_bytes(pcap(talk.frames))
    done = CliRunner().invoke(main, ["streams", str(file), "--http", "--payload-dir", str(tmp_path / "payloads")])
    found = [json.loads(line) for line in done.output.splitlines()]
    assert {each["type"] for each in found} == {"http1", "stream"}
    assert {name for each in found for name in each} <= named("The other commands")


def ledger(tap: str, *, lost: int) -> dict[str, Any]:
    """Of a tap that saw 1000 requests and was to mirror 800 of them; `lost` segments of 400 were lost, too."""
    found = Ledger()
    found.segments.seen, found.segments.mirrored = 400, 400 - lost
    if lost:
        found.segments.dropped[DropReason.RING_FULL] = lost
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
    done = subprocess.run(words, input=json.dumps(document), capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


NONE = {"name": "new", "state": "starting", "ledger": None}
ONE, TWO = ledger("web", lost=8), ledger("other", lost=0)
WEB = [
    "web: {1} % of 400 segments lost",
    "  ring_full: 8",
    "web: {0} % of 800 requests lost",
    "  shadow_slow: 7",
    "  gap: 1",
]
OTHER = ["other: {0} % of 400 segments lost", "other: {0} % of 800 requests lost"]


@pytest.mark.parametrize(
    ("document", "taps"),
    [(ONE, "web"), ({"taps": [TWO, ONE]}, "other web"), ({"taps": [{"name": "web", "ledger": ONE}, NONE]}, "web")],
    ids=["run", "run of several", "status"],
)
def test_the_program_that_reads_the_loss_runs(document: object, taps: str) -> None:
    _, program = blocks()
    found = ran([sys.executable, "-c", program], document)
    wanted = {
        "web": [line.format("1.000", "2.000") for line in WEB],
        "other": [line.format("0.000") for line in OTHER],
    }
    told = [line for line in found if not line.endswith("bytes lost")]
    assert told == [line for tap in taps.split() for line in wanted[tap]]
    assert len(found) - len(told) == len(taps.split())


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq")
def test_the_line_for_jq_that_reads_the_loss_runs() -> None:
    line, _ = blocks()
    (command, program) = re.fullmatch(r"(.* --json \| jq -r) '(.*)'", line, re.S).groups()  # type: ignore[union-attr]
    assert command.startswith("tapmirror run ")
    assert ran(["jq", "-r", program], ONE) == [each.format(1, 2) for each in WEB]
    several = ran(["jq", "-r", program], {"taps": [TWO, ONE]})
    assert several == [*(each.format(0) for each in OTHER), *(each.format(1, 2) for each in WEB)]
