# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of a whole tap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.mirror import Mirror
from lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab for the tests of one file; who needs another kind builds it."""
    with Lab() as built:
        yield built


@pytest.fixture
def fresh() -> Iterator[Lab]:
    """A lab of the test's own: no connection was there before, so that every port of the client is free."""
    with Lab() as built:
        yield built


@pytest.fixture(params=["ebpf", "packet"])
def each_capture(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test is run with each way to capture."""
    Mirror.default = request.param
    yield
    Mirror.default = "auto"
