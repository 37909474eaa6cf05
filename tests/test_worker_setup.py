# SPDX-License-Identifier: Apache-2.0
"""What a worker is told."""

from __future__ import annotations

import pytest

from tapmirror.spec import Compare, Level, Limits, TapSpec, parse_shadow
from tapmirror.worker.setup import COMPARED_BYTES, memory_limit


@pytest.mark.parametrize("copies", [1, 3])
def test_the_limit_of_memory_grows_with_the_copies_and_with_what_is_compared(copies: int) -> None:
    limits = Limits(memory=100 << 20, queues_bytes=10 << 20)
    shadows = (parse_shadow("127.0.0.1:80", copies=copies),)
    spec = TapSpec(iface="lo", ports=(80,), shadows=shadows, limits=limits)
    assert memory_limit(spec) == (90 + 10 * copies) << 20
    compared = TapSpec(iface="lo", ports=(80,), shadows=shadows, limits=limits, compare=Compare(level=Level.STATUS))
    assert memory_limit(compared) - memory_limit(spec) == copies * (COMPARED_BYTES + compared.compare.held_bytes)
