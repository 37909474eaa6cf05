# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from differences import found, response
from tapmirror.compare.tables import rows

TABLE = "id,at,price\n1,10:00:01,5\n2,10:00:01,6\n3,10:00:01,7\n"


def tables(one: str, other: str, type_: str = "text/csv; charset=utf-8") -> list[str]:
    return found(response(one.encode(), type_=type_), response(other.encode(), type_=type_))


def test_a_table_is_compared_by_its_columns() -> None:
    """A time in each row, which is noise, hid a price that is another one: they are in one line."""
    later = TABLE.replace("00:01", "00:02")
    assert tables(TABLE, later) == ["value body[].at"] * 3
    assert {*tables(TABLE, later.replace(",6", ",8"))} == {"value body[].at", "value body[].price"}
    assert tables(TABLE, TABLE.replace("2,10:00:01,6\n", "")) == ["length body"]


@pytest.mark.parametrize(
    ("old", "new"), [("\n", "\r\n"), (",5", ',"5"'), ("id", "\ufeffid"), ("3,10:00:01,7\n", "3,10:00:01,7")]
)
def test_how_it_is_written_says_nothing(old: str, new: str) -> None:
    assert tables(TABLE, TABLE.replace(old, new)) == []


@pytest.mark.parametrize("other", ["price,id,at\n5,1,x\n6,2,x\n7,3,x\n", "id,at\n1,x\n2,x\n3,x\n"])
def test_other_columns_are_other_lines(other: str) -> None:
    assert "value body.lines" in tables(TABLE, other)


@pytest.mark.parametrize(
    "text", ["1,2\n3,4\n", "a,b\n1\n", "a,a\n1,2\n", "a\n1\n", "", "a,b\n" + "1,2\n" * 3000, "a,b\r" + "1,2\r" * 3000]
)
def test_what_is_no_table(text: str) -> None:
    assert rows(text, b"text/csv") is None
    assert rows(TABLE, b"text/plain") is None


@pytest.mark.parametrize("piece", ['"', ",", '",', "a,", "\n,", "a\r"])
def test_hostile_tables_take_no_time(piece: str) -> None:
    begun = time.process_time()
    tables("a,b\n" + piece * (200_000 // len(piece)), "a,b\n" + piece * (200_000 // len(piece)) + "x")
    assert time.process_time() - begun < 1  # some 10 ms where nothing else runs


def test_other_separators() -> None:
    for separator, type_ in ((";", "text/csv"), ("\t", "text/tab-separated-values")):
        one = TABLE.replace(",", separator)
        assert tables(one, one.replace("6", "8"), type_) == ["value body[].price"]
