# SPDX-License-Identifier: Apache-2.0
"""The limits of a verdict as options: of `tapmirror verdict`, `report` and `run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tapmirror.cli.messages import fail
from tapmirror.cli.numbers import ALPHA
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.spec.numbers import number_of

Function = TypeVar("Function", bound=Callable[..., Any])


class Amount(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on, and only for type checkers
    """A share, such as `0.1%` or `0.001`; `none`: no limit."""

    name = "share"
    _what = "a share, like 0.1% or 0.001"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """As `click.ParamType.convert`."""
        if value is None or isinstance(value, float):
            return value
        text = str(value).strip()
        if text == "none":
            return None
        found = number_of(text.removesuffix("%"))
        number = -1.0 if found is None else found / (100 if text.endswith("%") else 1)
        if not 0 <= number < 1e6:
            self.fail(f"{text} is neither {self._what}, nor none", param, ctx)
        return number


class Ratio(Amount):
    """A ratio, such as `1.05`; `none`: no limit."""

    name = "ratio"
    _what = "a ratio above 0, like 1.05"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """As `click.ParamType.convert`."""
        ratio = super().convert(value, param, ctx)
        if ratio == 0:
            self.fail(f"{value} is neither {self._what}, nor none", param, ctx)
        return ratio


def limit_options(function: Function) -> Function:
    """Give a command the options for the limits of a verdict."""
    defaults = VerdictLimits()
    for option in (
        click.option(
            "--alpha",
            type=ALPHA,
            default=defaults.alpha,
            show_default=True,
            help="Highest probability that a verdict is wrong, however often you ask.",
        ),
        click.option(
            "--max-diff-rate",
            type=Amount(),
            default="0.5%",
            show_default=True,
            help="Highest share of responses that differ by more than noise; none: no limit.",
        ),
        click.option(
            "--max-p99-ratio",
            type=Ratio(),
            default="1.10",
            show_default=True,
            help="Highest ratio of the shadow's p99 to production's; none: no limit.",
        ),
        click.option(
            "--max-error-diff",
            type=Amount(),
            default="0.1%",
            show_default=True,
            help="How much higher the shadow's error rate may be; none: no limit.",
        ),
    ):
        function = option(function)
    return function


def limits_of(options: dict[str, Any], *, judge: bool = False) -> VerdictLimits:
    """The limits, taken out of `options`.  Ends the program if a verdict is wanted (`judge`) and there is no limit."""
    names = ("max_error_diff", "max_p99_ratio", "max_diff_rate")
    values = {name: options.pop(name) for name in names}
    if judge and all(value is None for value in values.values()):
        fail("all limits are none: there is nothing to judge by", 2)
    return VerdictLimits(alpha=options.pop("alpha"), **values)
