# SPDX-License-Identifier: Apache-2.0
"""What a worker makes of its set-up; with its privileges given up, see test_privsep and test_sandbox_enter."""

from __future__ import annotations

import re

import msgspec
import pytest

from tapmirror.events import DropReason
from tapmirror.ledger import Ledger
from tapmirror.replay.ports import DEFAULT_PORTS, GENTLE_CLOSES
from tapmirror.spec import Compare, Level, Limits, TapSpec, parse_shadow
from tapmirror.worker.assembly import _policy, _replay, _tracer
from tapmirror.worker.compared import pipeline
from tapmirror.worker.setup import Setup


def test_the_closes_that_keep_a_port_are_divided_among_all_reactors_of_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tapmirror.worker.assembly.ephemeral_ports", lambda: DEFAULT_PORTS)
    shadows = (parse_shadow("127.0.0.1:80", copies=2), parse_shadow("127.0.0.1:81"))
    spec = TapSpec(iface="lo", ports=(80,), shadows=shadows)
    setup = Setup(spec=spec, addresses=[[], []], capture="ring", workers=4, uid=0, gid=0)
    replay = _replay(setup, [None, None], [Ledger(), Ledger()], None)
    try:
        assert [reactor._ends._ports._gentle for reactor in replay.reactors] == [GENTLE_CLOSES // 12] * 3
    finally:
        replay.close(DropReason.SHUTDOWN)


@pytest.mark.parametrize(
    ("level", "most"),
    [(Level.OFF, [125, 125, 200]), (Level.STATUS, [125, 125, 200]), (Level.BODY, [110, 110, 175, 15, 15, 25])],
)
def test_half_of_the_hosts_ports_at_most_are_open_to_a_shadow(
    monkeypatch: pytest.MonkeyPatch, level: Level, most: list[int]
) -> None:
    """With those on which it is asked again."""
    monkeypatch.setattr("tapmirror.worker.assembly.ephemeral_ports", lambda: 1_000)
    shadows = (parse_shadow("127.0.0.1:80", copies=2), parse_shadow("127.0.0.1:81"))
    spec = TapSpec(
        iface="lo", ports=(80,), shadows=shadows, limits=Limits(connections=200), compare=Compare(level=level)
    )
    setup = Setup(spec=spec, addresses=[[], []], capture="ring", workers=2, uid=0, gid=0)
    ledgers = [Ledger(), Ledger()]
    comparing = None if level is Level.OFF else pipeline(setup, ledgers[0], None, None)
    replay = _replay(setup, [None, None], ledgers, comparing)
    try:
        assert [reactor._dialer._limits.connections for reactor in replay.reactors] == most
    finally:
        replay.close(DropReason.SHUTDOWN)


def test_the_workers_of_a_tap_mark_with_one_token_that_others_do_not_know() -> None:
    spec = TapSpec(iface="lo", ports=(80,), shadows=(parse_shadow("127.0.0.1:80"),))
    made = [
        _tracer(Setup(spec=spec, addresses=[[]], capture="ring", shard=shard, secret=secret, uid=0, gid=0))
        for shard, secret in ((0, b"a"), (1, b"a"), (0, b"b"))
    ]
    tokens = [re.findall(rb"[0-9a-f]{32}", bytes(each._token)) for each in made if each is not None]
    assert len(tokens) == 3 and tokens[0] == tokens[1] != tokens[2]
    off = msgspec.structs.replace(spec, loop_check=False)
    assert _tracer(Setup(spec=off, addresses=[[]], capture="ring", uid=0, gid=0)) is None


def test_a_worker_that_takes_anothers_place_gives_each_shadow_what_it_can_take() -> None:
    spec = TapSpec(iface="lo", ports=(80,), shadows=(parse_shadow("127.0.0.1:80"), parse_shadow("127.0.0.1:81")))
    setup = Setup(spec=spec, addresses=[[], []], capture="ring", thresholds=[1 << 32, 5], uid=0, gid=0)
    policy = _policy(setup, None)
    assert policy is not None
    assert [each.threshold for each in policy.destinations] == [1 << 32, 5]
