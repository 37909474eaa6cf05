# SPDX-License-Identifier: Apache-2.0
"""What a worker prints: it never waits, and few lines are heard, each on one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tapmirror.stdio import BURST, LINE_BYTES, RATE, WRITE_BYTES, Output, Unwaiting


@pytest.fixture
def output() -> Iterator[Output]:
    made = Output()
    yield made
    made.close(1e9)


def test_lines_come_whole_and_as_printable_text(output: Output) -> None:
    os.write(output.theirs, b"one\ntw")
    assert output.lines(1.0) == ["one"]
    assert output.lines(1.0) == []
    os.write(output.theirs, b"o\n\n \n\x1b[31m\r\x00\xff\xc3\xa4\nlast")
    assert output.lines(1.0) == ["two", "\\x1b[31m\\r\\x00\\xff\u00e4"]
    assert output.close(1.0) == ["last"]
    assert output.lines(2.0) == [] == output.close(2.0)


def test_a_line_without_end_is_cut_and_nothing_grows(output: Output) -> None:
    for _ in range(10):
        os.write(output.theirs, b"x" * WRITE_BYTES)
        (line,) = output.lines(1.0)
        assert line == "x" * LINE_BYTES + "..."
        assert len(output._rest) <= LINE_BYTES


def test_so_many_lines_a_second_and_the_others_are_counted(output: Output) -> None:
    os.write(output.theirs, b"".join(b"%d\n" % number for number in range(100)))
    assert output.lines(10.0) == [str(number) for number in range(int(BURST))]
    os.write(output.theirs, b"".join(b"%d\n" % number for number in range(100, 200)))
    second = output.lines(11.0)
    assert len(second) == RATE and second[0] == "100 (70 lines before it were held back)"
    assert output.close(11.0) == ["(95 more lines were held back)"]


def test_no_room_is_no_reason_to_wait(output: Output) -> None:
    out = Unwaiting(output.theirs)
    for _ in range(1000):
        print("y" * 999, file=out)  # the pipe holds 65 of them
    first = output.lines(1.0)
    assert len(first) == BURST
    print("again", file=out)
    (again,) = [line for line in output.lines(1e6) if "more that found no room" in line]
    assert int(again[1:].split()[0]) > 900
    with open(os.devnull, "rb") as wrong:
        assert print("nobody", file=Unwaiting(wrong.fileno())) is None


def test_a_process_that_prints_goes_on_where_nobody_reads(output: Output) -> None:
    words = (
        "from tapmirror import stdio\nstdio.print_without_waiting()\n"
        "for _ in range(10_000): print('z' * 100)\nraise ValueError('end')"
    )
    done = subprocess.run([sys.executable, "-c", words], stdout=output.theirs, stderr=output.theirs, timeout=300)
    assert done.returncode == 1
    output.let_go()
    assert output.lines(1.0)[0] == "z" * 100


def test_the_reader_may_go_first() -> None:
    output = Output()
    theirs = os.dup(output.theirs)
    output.close(0.0)
    out = Unwaiting(theirs)
    print("nobody reads this", file=out)
    os.close(theirs)
