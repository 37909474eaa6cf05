# SPDX-License-Identifier: Apache-2.0
"""A hundredth of `scripts/scenarios`: what it looks at is there, and what it finds it says."""

from __future__ import annotations

import pytest

from lab import LabError
from lab.scenarios import Outcome, __main__

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

SCALE = 0.01
TIMED = 1
"""The one that compares times, of which nothing can be said in this size."""


@pytest.mark.parametrize("number", sorted(__main__.SCENARIOS.keys() - {TIMED}))
def test_each_holds(number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name, scenario = next(iter(__main__.SCENARIOS[number].items()))
    monkeypatch.setitem(__main__.SCENARIOS, number, {name: scenario})
    assert __main__.main([f"{number}", "--capture=ebpf", f"--scale={SCALE}"]) == 0
    assert capsys.readouterr().out.startswith(f"{number} {name}, ebpf: holds: ")


def test_what_does_not_hold_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_lab: object, capture: str, scale: float) -> Outcome:
        if capture == "packet":
            raise LabError("it\nbroke")
        outcome = Outcome(figures=["3 sent"])
        outcome.hold(scale < 1, "unseen")
        outcome.hold(scale > 1, "1 missing")
        return outcome

    monkeypatch.setitem(__main__.SCENARIOS, 4, {"broken": broken})
    assert __main__.main(["4", "--scale=0.5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 broken, ebpf: does not hold (1 missing): 3 sent (")
    assert lines[1].startswith("4 broken, packet: does not hold (it broke): ")
