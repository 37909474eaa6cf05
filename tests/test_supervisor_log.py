# SPDX-License-Identifier: Apache-2.0
"""The log: few lines of a cause, one line each whatever is in it, and nobody waits for who reads it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab import PATIENCE, until
from tapmirror.supervisor import log as module
from tapmirror.supervisor.log import KEPT, KEPT_TAPS, LONGEST, RATE, WAITING, Level, Log, quoted


@pytest.fixture(autouse=True)
def _however_late_its_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written at the end of each log."""
    monkeypatch.setattr(module, "FLUSH_TIME", PATIENCE)


class Written:
    """What was written, as lines."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, line: bytes) -> None:
        self.data += line

    def lines(self) -> list[str]:
        return self.data.decode().splitlines()


def test_a_line_names_what_it_is_about() -> None:
    written = Written()
    log = Log(written, journal=False)
    log.say(Level.NOTICE, "audit", "done", tap="web", user="root", percent=5.0)
    log.close()
    (line,) = written.lines()
    start, rest = line.split(" ", 1)
    assert start.startswith("time=20") and start.endswith("Z")
    assert rest == "level=notice event=audit tap=web msg=done user=root percent=5.0"


def test_for_the_journal_a_line_begins_with_its_priority_and_has_no_time() -> None:
    written = Written()
    log = Log(written, journal=True)
    log.say(Level.ERROR, "lost", "it is gone")
    log.close()
    assert written.lines() == ['<3>level=error event=lost msg="it is gone"']


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("web", "web"),
        ("", '""'),
        ("a b", '"a b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nlevel=error", '"a\\\\nlevel=error"'),
        ("\x1b[31m\x00\x7f\u202e", '"\\\\x1b[31m\\\\x00\\\\x7f\\\\u202e"'),
        ("x" * 65_536, "x" * (LONGEST - 3) + "..."),
        (12, "12"),
    ],
)
def test_whatever_is_in_a_value_the_line_is_one(value: object, text: str) -> None:
    assert quoted(value) == text
    assert quoted(value).isprintable()


def test_ten_lines_a_second_of_a_cause_and_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    written = Written()
    log = Log(written, journal=False)
    for i in range(1000):
        log.say(Level.ERROR, "flood", f"line {i}")
    log.say(Level.ERROR, "another", "cause is not concerned")
    now += 0.15
    log.say(Level.ERROR, "flood", "later")
    log.say(Level.ERROR, "flood", "held back")
    now += 1.0
    log.tick()
    log.tick()
    log.close()
    lines = written.lines()
    assert len(lines) == RATE + 3
    assert lines[-3].endswith("msg=\"cause is not concerned\"")  # fmt: skip
    assert lines[-2].endswith(f"msg=later suppressed={1000 - RATE}")
    assert lines[-1].endswith("suppressed=1")


def test_what_befalls_all_taps_at_once_is_told_of_each() -> None:
    written = Written()
    log = Log(written, journal=False)
    for name in map(str, range(RATE * 4)):
        log.say(Level.WARNING, "waiting", "eth0 is down", tap=name)
        assert [line.text for line in log.of(name, 0)[0]] == ["eth0 is down"]
    log.close()
    assert len(written.lines()) == RATE * 4


def test_lines_of_something_are_held_back_for_no_other_of_their_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    written = Written()
    log = Log(written, journal=False)
    for i in range(1000):
        log.say(Level.NOTICE, "audit", "refused", of=f"somebody {i % 2}")
    log.say(Level.NOTICE, "audit", "done", of="another")
    now += 1.5
    log.tick()
    assert not log._causes
    log.say(Level.NOTICE, "audit", "done", of="somebody 0")
    log.close()
    lines = written.lines()
    assert len(lines) == 2 * RATE + 4
    assert lines[2 * RATE].endswith("event=audit msg=done")
    assert {line.partition('held back" ')[2] for line in lines[-3:-1]} == {
        f'suppressed={500 - RATE} of="somebody {i}"' for i in range(2)
    }
    assert lines[-1].endswith("event=audit msg=done")


def test_the_last_lines_of_a_tap_are_kept_and_can_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 10**6)
    log = Log(lambda _: None, journal=False)
    log.say(Level.INFO, "a", "of no tap")
    for i in range(KEPT + 5):
        log.say(Level.INFO, "a", f"line {i}\n", tap="web", more=i)
    lines, after = log.of("web", 0)
    assert [lines[0].text, lines[-1].text] == ["line 5\\n more=5", f"line {KEPT + 4}\\n more={KEPT + 4}"]
    assert len(lines) == KEPT
    assert log.of("web", after) == ([], after)
    log.say(Level.WARNING, "a", "new", tap="web")
    assert [(line.level, line.text) for line in log.of("web", after)[0]] == [("warning", "new")]
    for i in range(KEPT_TAPS):
        log.say(Level.INFO, "a", "other", tap=str(i))
    assert log.of("web", 0)[0] == []
    log.close()


def test_the_lines_go_of_which_nothing_was_said_for_the_longest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_TAPS", 2)
    log = Log(lambda _: None, journal=False)
    for name in ("web", "api", "web", "mail"):
        log.say(Level.INFO, "a", "line", tap=name)
    assert {name: len(log.of(name, 0)[0]) for name in ("web", "api", "mail")} == {"web": 2, "api": 0, "mail": 1}
    log.close()


def test_a_reader_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 10**6)
    monkeypatch.setattr(module, "FLUSH_TIME", 0.1)
    hangs = threading.Event()
    log = Log(lambda _: hangs.wait(2 * PATIENCE), journal=False)
    began = time.monotonic()
    for _ in range(WAITING + 100):
        log.say(Level.INFO, "a", "line")
    log.close()
    assert time.monotonic() - began < PATIENCE
    hangs.set()
    assert 99 <= log.lost <= 100
    hangs.set()


def test_an_error_of_the_journal_is_counted() -> None:
    def broken(_: bytes) -> None:
        raise BrokenPipeError

    log = Log(broken, journal=False)
    log.say(Level.INFO, "a", "line")
    until(lambda: log.lost == 1, "the count")
    log.close()


def test_lines_that_two_threads_lose_are_all_counted() -> None:
    """One loses what the queue has no room for, the other what cannot be written: neither adds without the lock."""
    alone: list[bool] = []

    class Count(int):
        def __add__(self, more: int) -> Count:
            alone.append(log._lock.locked())
            return Count(int(self) + more)

    full = threading.Event()

    def broken(_: bytes) -> None:
        full.wait(PATIENCE)
        raise BrokenPipeError

    log = Log(broken, journal=False)
    log.lost = Count()
    for number in range(WAITING + 2):  # one of them the thread has taken, or not yet
        log.say(Level.INFO, str(number), "line")
    full.set()
    log.close()
    assert log.lost == WAITING + 2
    assert all(alone)


@pytest.mark.parametrize("journal", [True, False])
def test_standard_error_is_the_journal_if_systemd_says_so(journal: bool) -> None:
    read, write = os.pipe()
    facts = os.fstat(write)
    stream = f"{facts.st_dev}:{facts.st_ino if journal else 1}"
    code = "from tapmirror.supervisor.log import *; l = to_stderr(); l.say(Level.INFO, 'a', 'b'); l.close()"
    subprocess.run([sys.executable, "-c", code], stderr=write, env={**os.environ, "JOURNAL_STREAM": stream}, check=True)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read().startswith(b"<6>level" if journal else b"time=")


def test_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    written = Written()
    log = Log(written, journal=False)

    def talk(cause: str) -> None:
        for _ in range(200):
            log.say(Level.INFO, cause, "x")

    threads = [threading.Thread(target=talk, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(written.lines()) == 8 * RATE


def test_after_a_full_disk_the_next_line_begins_a_line() -> None:
    data, room = b"", 10

    def write(line: bytes) -> None:
        nonlocal data, room
        data += line[:room]
        room -= len(line[:room])
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(write, journal=False)
    for word in ("one", "two"):
        log.say(Level.INFO, word, "lost")
    until(lambda: log.lost == 2, "both are lost")
    room = 1000
    log.say(Level.INFO, "three", "there again")
    log.say(Level.INFO, "four", "there again")
    log.close()
    assert [line.split(" ")[2] for line in data.decode().splitlines()[1:]] == ["event=three", "event=four"]
    assert data.decode().splitlines()[0].startswith("time=20") and len(data.decode().splitlines()[0]) == 10


def test_what_a_disk_takes_a_part_of_is_lost_and_counted(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from tapmirror.supervisor.log import Level, to_stderr
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
log = to_stderr()
log.say(Level.INFO, "some", "more than ten bytes")
log.close()
print(log.lost)
"""
    with open(tmp_path / "log", "wb") as file:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=file, check=True)
    assert (done.stdout.strip(), (tmp_path / "log").stat().st_size) == (b"1", 10)
