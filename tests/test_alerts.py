# SPDX-License-Identifier: Apache-2.0
"""The thresholds of deploy/alerts.yaml, by Prometheus's own evaluation (`promtool test rules`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

PROMTOOL = shutil.which("promtool")
ALERTS = Path(__file__).parent.parent / "deploy" / "alerts.yaml"

Series = dict[str, str]

RUNS = {"tap_state{state='running'}": "1x60", "tap_state{state='paused'}": "0x60"}
PAUSED = {"tap_state{state='running'}": "0x60", "tap_state{state='paused'}": "1x60"}
DOWN = {"tap_state{state='running'}": "0x60", "tap_state{state='paused'}": "0x60"}
SEEN = {"seen_requests_total": "0+10000x60"}
FAILS = {"shadow_connect_errors_total{shadow='v2',reason='ECONNREFUSED'}": "0+6x60"}
GETS = {"shadow_settled_bytes_total{shadow='v2',fate='mirrored'}": "0+100x60"}
LEFT_ALONE = {"shadow_breaker{shadow='v2',state='closed'}": "0x60", "shadow_breaker{shadow='v2',state='open'}": "1x60"}
WELL = {"shadow_breaker{shadow='v2',state='closed'}": "1x60", "shadow_breaker{shadow='v2',state='open'}": "0x60"}
RESPONSES = "shadow_answers_total{shadow='v2',class='%s'}"
COMPARED = "compare_compared_total{shadow='v2',endpoint='GET /'}"
DIFFERING = "compare_differing_total{shadow='v2',endpoint='GET /'}"
SHARE = {"spec_share_ratio": "0.5x60"}


def lost(reason: str, count: int) -> Series:
    """So many of 10,000 requests a minute."""
    return {**SEEN, f"settled_requests_total{{fate='dropped',reason='{reason}'}}": f"0+{count}x60"}


def responses(errors: int, kind: str = "5xx") -> Series:
    """So many of 100 a minute are errors."""
    return {RESPONSES % "2xx": f"0+{100 - errors}x60", RESPONSES % kind: f"0+{errors}x60"}


def differing(count: float, of: int) -> Series:
    """So many a minute."""
    return {COMPARED: f"0+{of}x60", DIFFERING: f"0+{count}x60"}


BUILD = "build_info{job='tapmirror',version='1'}"


def scraped(up: str, build: str, job: str = "tapmirror") -> Series:
    """A target, and what was told of a daemon."""
    return {f"up{{job='{job}'}}": up, BUILD: build}


CASES: list[tuple[str, Series, int, bool]] = [
    ("DaemonDown", scraped("1x9 0x50", "1x9 stale"), 16, True),
    ("DaemonDown", scraped("1x9 0x50", "1x9 stale"), 14, False),
    ("DaemonDown", scraped("1x9 0 0 1x50", "1x9 stale _ 1x50"), 40, False),
    ("DaemonDown", scraped("0x60", "1x60", job="other"), 40, False),
    ("DaemonDown", {"up{job='tapmirror'}": "0x60"}, 6, True),
    ("DaemonDown", {}, 6, True),
    ("TapDown", DOWN, 3, True),
    ("TapDown", DOWN, 1, False),
    ("TapDown", RUNS, 5, False),
    ("TapDown", PAUSED, 5, False),
    ("Loss", lost("gap", 110), 15, True),
    ("Loss", lost("gap", 110), 4, False),
    ("Loss", lost("gap", 90), 15, False),
    ("Loss", lost("midstream", 5000), 15, False),
    ("Loss", lost("shadow_down", 5000), 15, False),
    ("Loss", {"settled_segments_total{fate='dropped',reason='ring_full'}": "0+1x60"}, 15, True),
    ("Loss", {"settled_segments_total{fate='dropped',reason='gap'}": "0+1x60"}, 15, False),
    ("ShadowDead", FAILS, 5, True),
    ("ShadowDead", FAILS, 2, False),
    ("ShadowDead", {**FAILS, **GETS, **WELL}, 10, False),
    ("ShadowDead", {**FAILS, **GETS, **LEFT_ALONE}, 10, True),
    ("ShadowDead", {**LEFT_ALONE, **GETS}, 10, False),
    ("ShadowErrors", responses(11), 15, True),
    ("ShadowErrors", responses(11), 4, False),
    ("ShadowErrors", responses(9), 15, False),
    ("ShadowErrors", responses(11, "unanswered"), 15, True),
    ("ShadowErrors", responses(50, "4xx"), 15, False),
    ("ShadowDiffers", differing(6, 1000), 40, True),
    ("ShadowDiffers", differing(6, 1000), 14, False),
    ("ShadowDiffers", differing(4, 1000), 40, False),
    ("ShadowDiffers", differing(0.5, 10), 40, False),
    ("RingFilling", {"ring_fill_ratio": "0.51x60"}, 6, True),
    ("RingFilling", {"ring_fill_ratio": "0.51x60"}, 4, False),
    ("RingFilling", {"ring_fill_ratio": "0.49x60"}, 15, False),
    ("Throttled", {**RUNS, **SHARE, "effective_share_ratio": "0.44x60"}, 16, True),
    ("Throttled", {**RUNS, **SHARE, "effective_share_ratio": "0.44x60"}, 14, False),
    ("Throttled", {**RUNS, **SHARE, "effective_share_ratio": "0.46x60"}, 40, False),
    ("Throttled", {**PAUSED, **SHARE, "effective_share_ratio": "0x60"}, 40, False),
    ("WorkerRestarts", {"worker_restarts_total": "0 0 1 2 3 4 4x50"}, 12, True),
    ("WorkerRestarts", {"worker_restarts_total": "0 0 1 2 2x50"}, 12, False),
    ("WorkerRestarts", {"worker_restarts_total": "0 0 1 2 3 4 4x50"}, 40, False),
    *(("Unaccounted", {f"unaccounted_{unit}": "-1x60"}, 2, True) for unit in ("requests", "segments", "bytes")),
    ("Unaccounted", {"unaccounted_requests": "0x60", "unaccounted_bytes": "0x60"}, 15, False),
]
"""An alert, series of one tap with a sample a minute (`x`: how often a value comes again), minutes, and whether it
fires then."""


def labelled(name: str) -> str:
    """A series with the labels that all have; `up` is Prometheus's own."""
    name, _, more = name.partition("{")
    return f"{'' if name == 'up' else 'tapmirror_'}{name}{{instance='a',tap='web',{more or '}'}"


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool (Debian's prometheus)")
@pytest.mark.parametrize(
    ("alert", "series", "minutes", "fires"), CASES, ids=[f"{i} {case[0]}" for i, case in enumerate(CASES)]
)
def test_an_alert_fires_beyond_its_threshold_and_not_before(
    tmp_path: Path, alert: str, series: Series, minutes: int, fires: bool
) -> None:
    assert PROMTOOL is not None
    expression = f'count(ALERTS{{alertname="Tapmirror{alert}",alertstate="firing"}}) or vector(0)'
    test = {
        "interval": "1m",
        "input_series": [{"series": labelled(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minutes}m", "exp_samples": [{"labels": "{}", "value": int(fires)}]}
        ],
    }
    path = tmp_path / "test.yaml"
    path.write_bytes(msgspec.yaml.encode({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
