# SPDX-License-Identifier: Apache-2.0
"""The limits of a verdict, as they are given to a command."""

from __future__ import annotations

from typing import Any

import click
import pytest

from runner import CliRunner
from tapmirror.cli.limits import limit_options, limits_of
from tapmirror.compare.verdict import VerdictLimits

NONE = ["--max-error-diff=none", "--max-diff-rate=none", "--max-p99-ratio=none"]


@click.command()
@limit_options
def limited(**options: Any) -> None:
    """Print what the limits are."""
    click.echo(repr(limits_of(options, judge=True)))
    assert not options


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], VerdictLimits()),
        (["--max-error-diff=2%"], VerdictLimits(max_error_diff=0.02)),
        (["--max-error-diff=0.02"], VerdictLimits(max_error_diff=0.02)),
        (["--max-diff-rate=0"], VerdictLimits(max_diff_rate=0.0)),
        (["--max-p99-ratio=1.5", "--alpha=0.05"], VerdictLimits(max_p99_ratio=1.5, alpha=0.05)),
        (NONE[:2], VerdictLimits(max_error_diff=None, max_diff_rate=None)),
    ],
)
def test_what_is_not_given_is_as_it_is_told(words: list[str], wanted: VerdictLimits) -> None:
    assert CliRunner().invoke(limited, words).output == f"{wanted!r}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-error-diff", "x"], "x is neither a share, like 0.1% or 0.001, nor none"),
        (["--max-error-diff", "-1"], "-1 is neither a share"),
        (["--max-diff-rate", "1e9"], "1e9 is neither a share"),
        *(
            (["--max-p99-ratio", text], f"{text} is neither a ratio above 0, like 1.05, nor none")
            for text in ("0", "0%", "0.0")
        ),
        (["--max-p99-ratio", "-1"], "-1 is neither a ratio above 0, like 1.05, nor none"),
        *(
            (["--alpha", text], f"'{text}' is not a probability above 0, up to 0.5")
            for text in ("nan", "x", "0", "0.51")
        ),
        (NONE, "all limits are none"),
    ],
)
def test_what_is_none_is_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(limited, words)
    assert done.exit_code == 2
    assert said in done.output
