# SPDX-License-Identifier: Apache-2.0
"""What a worker compares with, and when that is loaded."""

from __future__ import annotations

import sys

import pytest

from tapmirror import worker
from tapmirror.ledger import Ledger
from tapmirror.spec import Compare, Level, TapSpec, parse_shadow
from tapmirror.worker import assembly, compared
from tapmirror.worker.setup import Setup


def setup(level: Level) -> Setup:
    shadows = (parse_shadow("127.0.0.1:80", copies=2), parse_shadow("127.0.0.1:81"))
    spec = TapSpec(iface="lo", ports=(80,), shadows=shadows, compare=Compare(level=level))
    return Setup(spec=spec, addresses=[[], []], capture="ring", uid=0, gid=0)


def test_each_copy_of_each_shadow_is_compared() -> None:
    state = compared.pipeline(setup(Level.STATUS), Ledger(), None, None).state()
    assert [*state["shadows"]] == ["127.0.0.1:80", "127.0.0.1:80#2", "127.0.0.1:81"]


@pytest.mark.parametrize("level", [Level.OFF, Level.STATUS])
def test_it_is_loaded_where_it_is_wanted_and_before_privileges_go(
    monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    """They may be what reads the files."""

    class GoneError(Exception):
        pass

    def going() -> None:
        raise GoneError

    monkeypatch.setattr(assembly, "give_way", going)  # the first thing that is given up
    wanted = [compared.__name__, "brotli", "zstandard"]
    for name in wanted:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(worker, "compared")
    with pytest.raises(GoneError):
        assembly.prepare(setup(level), [])
    assert [name in sys.modules for name in wanted] == [level is not Level.OFF] * 3
