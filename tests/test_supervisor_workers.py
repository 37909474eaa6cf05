# SPDX-License-Identifier: Apache-2.0
"""One worker process: it answers, it ends, it hangs, it cannot begin; each is told in one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import PATIENCE, Lab, until
from signalled import Ended, ending, signal_ourselves
from tapmirror import contract, privsep
from tapmirror.ledger import summed
from tapmirror.source.sockets import open_live
from tapmirror.spec import Hook, Limits, Protocol, TapSpec, parse_shadow
from tapmirror.spec.tap import MAX_WORKERS
from tapmirror.supervisor import patience, workers
from tapmirror.supervisor.patience import Scheduled, _Look
from tapmirror.supervisor.workers import LoopFound, TapError, WorkerProcess, WorkerSlot, automatic
from tapmirror.worker.setup import Setup
from test_supervisor_metrics import Taps, compared, falls, snapshot

SHADOW = "10.77.2.2"


def real(test: Any) -> Any:
    """A test of real workers, which mirror."""
    return pytest.mark.e2e(pytest.mark.ebpf(test))


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 1), (3, 1), (16, 8), (512, MAX_WORKERS)])
def test_auto_leaves_production_half_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, processors: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    assert automatic() == workers


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def started(lab: Lab, **change: Any) -> WorkerProcess:
    """A worker that looks at a packet socket of the node."""
    uid, gid = privsep.worker_identity()
    fields = {"iface": "eth0", "ports": (80,), "shadows": (parse_shadow(f"{SHADOW}:80"),), **change}
    spec = TapSpec(**fields)
    setup = Setup(spec=spec, addresses=[[(int(socket.AF_INET), [SHADOW, 80])]], capture="packet", uid=uid, gid=gid)
    with lab.node.enter(), open_live("eth0", Limits().ring_bytes, loopback=False, ports=None) as sock:
        worker = WorkerProcess(setup, [sock.fileno()], print, print)
    try:
        worker.wait_ready(PATIENCE)
    except BaseException:
        worker.close(0.0)
        raise
    return worker


@real
def test_it_answers_and_goes_when_let_go(lab: Lab) -> None:
    worker = started(lab)
    try:
        found = worker.ask({"op": "snapshot"}, "snapshot", PATIENCE)["snapshot"]
        assert found["worker"]["pid"] == worker.pid
        assert not select.select([worker.fileno()], [], [], 0)[0]
        blocked = int(re.findall(r"^SigBlk:\t(\w+)$", Path(f"/proc/{worker.pid}/status").read_text(), re.M)[0], 16)
        assert blocked >> signal.SIGINT - 1 & 1  # since before it ran: a Ctrl-C while it was started is not for it
    finally:
        worker.close(5.0)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_a_signal_while_one_is_started_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever line of ours: here it stands still already, and its set-up was not sent."""
    begun: list[int] = []

    class Signalled(Scheduled):
        def __init__(self, pid: int) -> None:
            begun.append(pid)
            os.kill(pid, signal.SIGSTOP)
            signal_ourselves()
            super().__init__(pid)

    monkeypatch.setattr(workers, "Scheduled", Signalled)
    spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow(f"{SHADOW}:80"),))
    setup = Setup(spec=spec, addresses=[], capture="packet", uid=os.getuid(), gid=os.getgid())
    slot = WorkerSlot(lambda: (setup, []), print, print)
    try:
        with ending(), pytest.raises(Ended):
            slot.begin()
        slot.close(0.0)
        assert [os.path.exists(f"/proc/{pid}") for pid in begun] == [False]
    finally:
        for pid in begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@real
def test_its_death_is_readable_and_told(lab: Lab) -> None:
    worker = started(lab)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        assert select.select([worker.fileno()], [], [], PATIENCE)[0]
        with pytest.raises(TapError, match=r"^the worker process ended \(signal 9, most likely for want of mem"):
            worker.ask({"op": "snapshot"}, "snapshot", PATIENCE)
    finally:
        worker.close(5.0)


@real
def test_one_that_hangs_is_killed(lab: Lab) -> None:
    worker = started(lab)
    try:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(TapError, match="did not answer within 0 s"):
            worker.ask({"op": "snapshot"}, "snapshot", 0.2)
    finally:
        worker.close(5.0)
    assert not os.path.exists(f"/proc/{worker.pid}")


def told_in_pieces(pieces: int, pause: float) -> tuple[WorkerProcess, subprocess.Popen[bytes], threading.Thread]:
    """A worker that answers in so many pieces, and pauses before each; its place is taken by another process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    text = json.dumps({"compare": "x" * pieces})
    size = -(-len(text) // pieces)

    def tell() -> None:
        with theirs, contextlib.suppress(OSError):
            for start in range(0, len(text), size):
                time.sleep(pause)
                privsep.send(theirs, {"piece": text[start : start + size], "more": start + size < len(text)})

    process = subprocess.Popen(["sleep", "60"])
    worker = WorkerProcess.__new__(WorkerProcess)
    worker._scheduled, worker._hurried = Scheduled(process.pid), False
    worker._control, worker._process, worker._pieces, worker.ready = ours, process, privsep.Pieces(1 << 20), True
    thread = threading.Thread(target=tell)
    thread.start()
    return worker, process, thread


def test_a_long_reply_may_take_longer_than_each_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each of them, by a clock that nothing else moves."""
    worker, process, thread = told_in_pieces(16, 0.0)
    now, take = 1000.0, worker._take

    def late() -> dict[str, Any]:
        nonlocal now
        now += 1.0
        return take()

    monkeypatch.setattr(worker, "_take", late)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now))
    with process:
        assert worker.reply("compare", 3.0) == {"compare": "x" * 16}
        process.kill()
    thread.join()
    worker._control.close()


def test_pieces_without_end_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PIECES_TIME", 1.0)
    worker, process, thread = told_in_pieces(100, 0.1)
    with process:
        with pytest.raises(TapError, match="did not answer"):
            worker.reply("compare", 0.5)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    worker._control.close()
    thread.join()


@real
def test_one_that_cannot_begin_says_why_and_is_gone(lab: Lab) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(TapError, match=r"^hook: cannot load no_such_module:f"):
        started(lab, protocol=Protocol.HTTP, hook=Hook(call="no_such_module:f"))
    assert set(os.listdir("/proc/self/fd")) == before


@real
def test_one_of_other_files_than_ours_refuses_and_says_what_to_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the package, when nobody has restarted the daemon."""
    ours = contract.CONTRACT
    monkeypatch.setattr(contract, "CONTRACT", "0.0.9-123456789abc")
    with pytest.raises(TapError) as caught:
        started(lab)
    assert str(caught.value) == f"tapmirror {ours} is installed now, and 0.0.9-123456789abc is running: restart it"


# --- workers that say what they should not

SCRIPT = """#!{python} -ISu
import json, os, socket, sys
control = socket.socket(fileno=int(sys.argv[-2]))
control.recv(4096)
figures = json.loads({figures!r})
told = []

def say(message, fds=()):
    data = json.dumps(message).encode()
    socket.send_fds(control, [data], fds) if fds else control.send(data)

def serve():
    say({{"ready": 1}})
    while data := control.recv(65536):
        message = json.loads(data)
        told.append(message)
        figures["events"]["told"] = len(told)
        figures["answers"] = {{told[i]["op"] + str(told[i].get("n", "")): i for i in range(len(told))}}
        say({{message["op"]: figures, "handover": {{}}}})

{body}
"""


def fates() -> dict[str, Any]:
    counts = dict.fromkeys(("seen", "mirrored", "sampled_out", "in_flight", "unaccounted"), 0)
    return {**counts, "filtered": {}, "dropped": {}}


FIGURES = {
    **{unit: fates() for unit in ("segments", "bytes", "requests")},
    "events": {},
    "answers": {},
    "flows": 0,
    "ring": {"bytes": 1, "fill": 0.0},
    "shadows": {
        f"{SHADOW}:80": {
            "bytes": fates(),
            "requests": fates(),
            "events": {},
            "answers": {},
            "latency": {"count": 0, "sum_s": 0.0, "buckets": {}},
        }
    },
    "worker": {"pid": 1, "cpu_s": 1.5, "rss_kb": 1, "sandbox": []},
}

Sit = Callable[[str], WorkerSlot]


@pytest.fixture
def said() -> list[str]:
    """What the workers printed."""
    return []


@pytest.fixture
def warned() -> list[str]:
    """What was told of them."""
    return []


@pytest.fixture
def sit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], warned: list[str]) -> Iterator[Sit]:
    """A seat whose workers are a few lines of Python in place of the real one's."""
    slots: list[WorkerSlot] = []
    python = sys.executable

    def make(body: str) -> WorkerSlot:
        script = tmp_path / "worker"
        script.write_text(SCRIPT.format(python=python, figures=json.dumps(FIGURES), body=body))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow(f"{SHADOW}:80"),))
        setup = Setup(spec=spec, addresses=[], capture="packet", uid=0, gid=0)
        slots.append(WorkerSlot(lambda: (setup, []), warned.append, said.append))
        return slots[-1]

    yield make
    for slot in slots:
        slot.close(0.0)


def test_descriptors_of_a_worker_end_it_and_are_not_ours(sit: Sit) -> None:
    before = set(os.listdir("/proc/self/fd"))
    slot = sit('say({"ready": 1}, [0, 1, 2]); serve()')
    with pytest.raises(TapError, match="what cannot be read: a message with descriptors"):
        slot.start()
    slot.close(0.0)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('figures["segments"]["seen"] = []', "segments.seen"),
        ('figures["shadows"]["x"] = figures["shadows"].popitem()[1]', "shadows are not the tap's"),
        ('del figures["worker"]', "worker"),
    ],
)
def test_figures_that_cannot_be_end_it(sit: Sit, change: str, words: str) -> None:
    slot = sit(f"{change}\nserve()")
    with pytest.raises(TapError, match=rf"gave figures that cannot be: .*{words}"):
        slot.start()


@pytest.mark.parametrize("when", ["before it is asked", "when it is asked"])
def test_what_a_worker_says_last_is_why_it_ended(sit: Sit, when: str) -> None:
    """Either way its end of the socket is closed, with a request unread, before what it said is read."""
    waits = "import select; select.select([control], [], [])" if when == "when it is asked" else ""
    slot = sit(
        "say({'ready': 1}); control.recv(65536); say({'snapshot': figures, 'handover': {}})\n"
        f"{waits}\nsay({{'error': 'no memory'}}); os._exit(1)"
    )
    slot.start()
    assert slot._process is not None
    if not waits:
        slot._process._process.wait(PATIENCE)
    slot.snapshot()
    assert slot.reason == "no memory"


@pytest.mark.parametrize(
    "says",
    ["say({'error': evil})", "figures[evil] = 1; serve()"],
    ids=["error", "figures"],
)
def test_what_a_worker_says_is_a_line_of_printable_characters_and_not_long(sit: Sit, says: str) -> None:
    """It is shown on the terminals of operators, and a worker reads the network."""
    slot = sit(f"evil = '\\x1b]0;mine\\x07\\nweb: running' + 'x' * 9000\n{says}")
    with pytest.raises(TapError) as caught:
        slot.start()
    assert str(caught.value).isprintable() and r"\x1b]0;mine\x07\nweb: running" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_loop_that_a_worker_tells_of_unasked_is_known(sit: Sit) -> None:
    slot = sit('say({"ready": 1}); say({"loop": {"target": 1, "client": "10.0.0.1"}}); serve()')
    slot.start()

    def heard() -> bool:
        slot.service(time.monotonic())
        return slot.loop is not None

    until(heard, "it is heard")
    assert slot.loop == LoopFound(1, "10.0.0.1")
    assert slot.running


@pytest.mark.parametrize(
    "found", ['{"target": -1, "client": "10.0.0.1"}', '{"target": 0, "client": "\\n"}', "[]", "{}"]
)
def test_a_loop_that_cannot_be_ends_a_worker(sit: Sit, found: str) -> None:
    slot = sit(f'say({{"ready": 1}}); say({{"loop": {found}}}); serve()')
    with pytest.raises(TapError, match="told of a loop that cannot be: "):
        slot.start()
    assert slot.loop is None


def test_figures_that_go_bad_are_its_death_and_the_last_good_ones_stay(sit: Sit) -> None:
    slot = sit(
        "real = say\n"
        "def say(message):\n"
        "    if len(told) > 1: figures['answers'] = {'2xx': []}\n"
        "    real({**message, **({'snapshot': figures} if 'snapshot' in message else {})})\n"
        "serve()"
    )
    slot.start()
    first = slot.snapshot()
    assert not slot.running and "figures that cannot be" in slot.reason
    assert first["answers"] == {"snapshot": 0}
    assert slot.snapshot() == first
    assert slot.due() is not None, "another one starts"


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_what_is_left_by_one_that_dies_while_it_drains_is_drained_by_the_next(
    sit: Sit, tmp_path: Path, deaths: int
) -> None:
    (tmp_path / "lives").mkdir()
    slot = sit(
        f"lives = {str(tmp_path / 'lives')!r}\n"
        "life = len(os.listdir(lives))\n"
        "open(f'{lives}/{life}', 'w').close()\n"
        "real = say\n"
        "def say(message):\n"
        f"    if 'drain' in message and life < {deaths}: sys.exit()\n"
        "    real({'final': figures} if 'drain' in message else message)\n"
        "serve()"
    )
    slot.start()
    slot.begin_drain(comparison=False)
    assert slot.drain(PATIENCE, comparison=False)["worker"]["restarts"] == deaths
    assert slot.lost == ""


def test_a_worker_that_dies_whenever_it_drains_has_no_successors_without_end(sit: Sit) -> None:
    slot = sit("real = say\ndef say(message):\n    sys.exit() if 'drain' in message else real(message)\nserve()")
    slot.start()
    last = slot.drain(PATIENCE, comparison=False)
    assert "times in a row" in slot.lost
    assert last["answers"] == {"snapshot": 0}, "its last ledger"


def test_one_that_found_a_loop_has_no_successor(sit: Sit) -> None:
    """It stood still, with what it had not read yet: the next one would begin with sending that to production."""
    slot = sit(
        "real = say\n"
        "def say(message):\n"
        "    if 'drain' in message: sys.exit()\n"
        "    real(message)\n"
        "    if 'snapshot' in message: real({'loop': {'target': 0, 'client': '10.0.0.1'}})\n"
        "serve()"
    )
    slot.start()
    slot.drain(PATIENCE, comparison=False)
    assert slot.restarts == 0
    assert slot.loop == LoopFound(0, "10.0.0.1")


def test_what_comparisons_counted_goes_on_when_one_of_two_workers_is_replaced(sit: Sit, tmp_path: Path) -> None:
    label = f"{SHADOW}:80"
    lives = []
    for pairs in (1000, 1000, 10):
        found = compared(a=pairs)["compare"]["shadows"]["v2:80"]
        lives.append({"shadows": {label: found}, "capture": {"flows": 1}})
    (tmp_path / "lives").mkdir()
    slots = [
        sit(
            f"lives = {str(tmp_path / 'lives')!r}\n"
            "life = len(os.listdir(lives))\n"
            "open(f'{lives}/{life}', 'w').close()\n"
            f"figures['compare'] = json.loads({json.dumps(lives)!r})[life]\n"
            "real = say\n"
            "def say(message):\n"
            "    sys.exit() if 'die' in message else real(message)\n"
            "serve()"
        )
        for _ in range(2)
    ]
    for slot in slots:
        slot.start()

    def counted() -> Any:
        return summed([slot.snapshot()["compare"] for slot in slots])

    taps = Taps(snapshot(compare=counted()))
    before = taps.samples()
    slots[0].tell({"op": "die"}, "die")
    assert not slots[0].running
    taps.now = [snapshot(compare=counted())]
    assert taps.samples() == before

    def replaced() -> bool:
        slots[0].service(time.monotonic())
        return slots[0].running

    until(replaced, "another one")
    for _ in range(2):
        found = counted()
        taps.now = [snapshot(compare=found)]
        after = taps.samples()
        assert not falls(before, after)
        of = (label, "shop")
        assert after[("tapmirror_compare_exchanges_total", "POST /a", *of)] == 2010
        assert after[("tapmirror_compare_differing_total", "POST /a", *of)] == 1005
        assert after[("tapmirror_compare_latency_seconds_count", "POST /a", label, "shadow", "shop")] == 2010
        assert after[("tapmirror_compare_unpaired_total", "gap", *of)] == 6
        assert found["shadows"][label]["all"]["pairs"] == 2010 and found["capture"] == {"flows": 3}


def test_what_changes_while_one_starts_is_told_when_it_is_ready(sit: Sit, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slot = sit(f"open({str(gate)!r}).read()\nserve()")
    slot.begin()
    slot.tell({"op": "share", "n": 1}, "share")
    slot.tell({"op": "addresses", "shadow": 0, "n": 2}, "addresses")
    slot.tell({"op": "addresses", "shadow": 1, "n": 3}, "addresses")
    slot.tell({"op": "share", "n": 4}, "share")
    assert slot.restarts == 0 and slot.filenos(), "it is not killed for it"
    gate.write_text("")

    def served() -> bool:
        slot.service(time.monotonic())
        return slot.running

    until(served, "it is ready")
    assert slot.snapshot()["answers"] == {"addresses2": 0, "addresses3": 1, "share4": 2, "snapshot": 4}
    assert (slot.restarts, slot.reason) == (0, "")


def test_what_a_worker_prints_is_heard_and_its_last_words_too(sit: Sit, said: list[str]) -> None:
    slot = sit("print('a hook\\x1b[2J')\nserve()")
    slot.start()

    def heard() -> bool:
        slot.service(time.monotonic())
        return bool(said)

    until(heard, "the line")
    assert said == ["a hook\\x1b[2J"]
    bad = sit("say({'ready': 1})\ncontrol.recv(65536)\nraise ValueError('the reason')")
    with pytest.raises(TapError, match="ended"):
        bad.start()
    bad.close(0.0)
    assert said[1].startswith("Traceback") and said[-1] == "ValueError: the reason"


def test_a_worker_that_prints_without_end_costs_a_few_lines(sit: Sit, said: list[str]) -> None:
    """Its pipe is full again at once, whenever it is emptied; it is never read for long."""
    slot = sit("import threading\ndef flood():\n    while True:\n        print('x' * 100_000)\n"
               "threading.Thread(target=flood, daemon=True).start()\nserve()")  # fmt: skip
    slot.start()
    end = time.monotonic() + PATIENCE
    while not said and time.monotonic() < end:  # its thread may not have had a CPU yet
        slot.service(time.monotonic())
    for _ in range(200):
        slot.service(time.monotonic())
    assert 0 < len(said) < 100 and max(map(len, said)) < 500


# --- workers that get no CPU, as the kernel tells it (`test_supervisor_patience` has some that really get none)

LATE = """
import time
real = say
def say(message):
    time.sleep({})
    real(message)
serve()
"""


@pytest.fixture
def starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers wait for a CPU."""
    monkeypatch.setattr(Scheduled, "look", lambda _: _Look(time.monotonic(), b"R", (5, 5, 5)))


@pytest.mark.usefixtures("starved")
def test_one_that_waits_for_a_cpu_is_waited_for_and_that_is_told_once(
    sit: Sit, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "STARVED", 1.0)
    slot = sit(LATE.format(1.5))
    slot.start()
    assert slot._process is not None
    for _ in range(2):
        slot._process.ask({"op": "snapshot"}, "snapshot", 0.5)
    assert len(warned) == 1
    assert re.match(r"the worker process has waited \d s for a CPU: .* after 60 s of this$", warned[0])


@pytest.mark.usefixtures("starved")
def test_one_that_waits_for_a_cpu_is_not_waited_for_without_end(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = sit(LATE.format("60 if len(told) > 1 else 0"))
    slot.start()
    monkeypatch.setattr(patience, "LONGEST", 1.0)
    worker = slot._process
    assert worker is not None
    with pytest.raises(TapError, match=r"did not answer within 1 s, and waited 1 s for a CPU besides$"):
        worker.ask({"op": "snapshot"}, "snapshot", 0.6)
    assert worker._process.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.usefixtures("starved")
def test_one_that_waits_for_a_cpu_while_it_starts_is_waited_for(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "READY_TIME", 0.5)
    slot = sit(LATE.format(1.5))
    slot.begin()
    while not slot.running and not slot.reason:
        slot.service(time.monotonic())
        time.sleep(0.1)
    assert (slot.running, slot.reason, slot.restarts) == (True, "", 0)


@pytest.mark.usefixtures("starved")
def test_one_that_waits_for_a_cpu_is_not_waited_for_where_the_tap_ends(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LOOK", 0.1)
    slot = sit(LATE.format("60 if len(told) > 1 else 0"))
    slot.start()
    worker = slot._process
    assert worker is not None
    ends = threading.Timer(0.5, slot.hurry)
    ends.start()
    with pytest.raises(TapError, match=r"did not answer within 0 s$"):
        worker.ask({"op": "snapshot"}, "snapshot", 0.3)
    ends.join()
    assert worker._process.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.usefixtures("starved")
def test_a_successor_that_waits_for_a_cpu_is_not_waited_for_where_the_tap_ends(sit: Sit) -> None:
    slot = sit(LATE.format("0 if len(told) > 1 else 60"))
    slot.begin()
    slot.hurry()
    assert slot._process is not None
    with pytest.raises(TapError, match=r"did not answer within 0 s$"):
        slot._process.wait_ready(0.3)
