# SPDX-License-Identifier: Apache-2.0
"""How the tests run: what needs root, what may not be skipped, and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from daemon_rig import Rig, rigged
from lab.left import Trace
from replay_bench import Bench, benched

REQUIRE_ALL = "TAPMIRROR_REQUIRE_ALL"
"""In the environment: a test marked `ebpf` or `e2e` that is skipped has failed."""
BESIDE = "TAPMIRROR_BESIDE"
"""In the environment: another run is on this machine meanwhile, and loads programs."""
SETTLE_TIME = 60.0
"""Seconds for what was killed to be gone; the kernel frees namespaces and programs after a moment."""

BEFORE = pytest.StashKey[Trace]()
"""What was there before the run."""

hypothesis.settings.register_profile("tapmirror", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("tapmirror")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and would be by all that tests start


def privileged(item: pytest.Item) -> bool:
    """Whether a test needs root."""
    return any(item.get_closest_marker(name) for name in ("ebpf", "e2e"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in filter(privileged, items):
            item.add_marker(pytest.mark.skip(reason="needs root: sudo scripts/test"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests stay to the end: garbage is not looked for among them, now or later."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(REQUIRE_ALL) and privileged(item):
        report.outcome = "failed"
        report.longrepr = f"skipped, and {REQUIRE_ALL} is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and os.environ.get(REQUIRE_ALL):
        report.outcome = "failed"
        report.longrepr = f"skipped whole, and {REQUIRE_ALL} is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _programs_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By all taps of this run together, and not by one of an earlier one."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    os.environ["CACHE_DIRECTORY"] = str(run / "programs")
    (run / "programs").mkdir(mode=0o700, exist_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # who has started other processes of pytest looks after them all
        session.config.stash[BEFORE] = Trace.now(beside=BESIDE in os.environ)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Processes, namespaces, mounts, attachments, programs: as before, or the run has failed."""
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    end = time.monotonic() + SETTLE_TIME
    left = ""
    while (left := Trace.now(beside=BESIDE in os.environ).since(before)) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        sys.stderr.write(f"\nleft behind: {left}\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A reactor and its shadow."""
    yield from benched()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A daemon with scripted taps."""
    yield from rigged(tmp_path, monkeypatch)
