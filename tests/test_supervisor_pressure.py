# SPDX-License-Identifier: Apache-2.0
"""Pressure as the kernel tells it, and as nothing where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapmirror.supervisor.pressure import PSI, some


@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_this_host(resource: str) -> None:
    if not PSI.exists():
        pytest.skip("no PSI in this kernel")
    assert 0 <= some(resource) <= 100


def test_what_the_kernel_writes(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text(
        "some avg10=23.73 avg60=47.34 avg300=18.20 total=72763464\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    assert some("cpu", tmp_path) == 23.73


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert some("cpu", tmp_path) == 0
    (tmp_path / "memory").write_text("")
    assert some("memory", tmp_path) == 0
