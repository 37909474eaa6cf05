# SPDX-License-Identifier: Apache-2.0
"""The protocol: a closed table of requests, every other line is refused with its id and one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.control.messages import (
    MAX_MESSAGE,
    AnyRequest,
    Apply,
    Lines,
    List,
    Logs,
    Pause,
    ProtocolError,
    Reload,
    Report,
    Request,
    Resume,
    Set,
    Start,
    Status,
    Stop,
    read_reply,
    read_request,
    write_error,
    write_reply,
    write_request,
)
from tapmirror.spec import By, Limits, TapSpec, parse_shadow

SPEC = TapSpec(
    iface="eth0", ports=(80,), shadows=(parse_shadow("[::1]:81"),), name="web", by=By.CONNECTION, limits=Limits()
)
LONG = "x" * 65
REQUESTS: list[AnyRequest] = [
    List(),
    Status(id="a", name="web"),
    Logs(id=1, name="web", after=9),
    Start(id=2, taps=[SPEC], force=True),
    Stop(id=3, all=True),
    Apply(id=4, taps=[SPEC, SPEC], dry_run=True),
    Set(id=5, name="web", percent=12.5),
    Pause(id=6, name="web"),
    Resume(id=7, name="web"),
    Reload(id=8),
    Report(id=9, name="web"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_every_request_comes_out_as_it_went_in(request_: AnyRequest) -> None:
    line = write_request(request_)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_request(line[:-1]) == request_


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_of_no_request_an_unknown_field_is_taken(request_: AnyRequest) -> None:
    line = write_request(request_).replace(b"{", b'{"nonsense":1,', 1)
    with pytest.raises(ProtocolError, match="unknown field `nonsense`"):
        read_request(line)


def test_the_table_says_what_changes_taps() -> None:
    assert {type(each) for each in REQUESTS} == set(AnyRequest.__args__)
    assert {type(each) for each in REQUESTS if not each.changes} == {List, Status, Logs}


@pytest.mark.parametrize(
    ("line", "code", "id_", "words"),
    [
        ("", "bad_request", None, "truncated"),
        ("[]", "bad_request", None, "Expected `object`"),
        ('{"v":1', "bad_request", None, "truncated"),
        ('{"id":7,"op":"list"}', "bad_request", None, "missing required field `v`"),
        ('{"v":2,"id":7,"op":"whatever"}', "version", 7, "speaks version 1 of the protocol, not 2"),
        ('{"v":1,"id":7,"op":"format_disk"}', "bad_request", 7, "op: Invalid value 'format_disk'"),
        ('{"v":1,"id":7}', "bad_request", 7, "missing required field `op`"),
        ('{"v":1,"id":"x","op":"set","name":"web"}', "bad_request", "x", "missing required field `percent`"),
        ('{"v":1,"id":7,"op":"set","name":"web","percent":"9"}', "bad_request", 7, "percent: Expected `float`"),
        ('{"v":1,"id":7,"op":"list","more":1}', "bad_request", 7, "unknown field `more`"),
        ('{"v":1,"id":7,"op":"pause","name":"' + LONG + '"}', "bad_request", 7, "name: Expected `str` of length"),
        ('{"v":1,"id":"' + LONG + '","op":"list"}', "bad_request", None, "id: Expected `str` of length"),
        ('{"v":1,"id":7,"op":"start","taps":[{"iface":"e"}]}', "bad_request", 7, "taps[0]: Object missing"),
        ('{"v":1,"id":7,"op":"logs","name":' + "[" * 100_000, "bad_request", 7, ""),
        ("[" * 100_000, "bad_request", None, ""),
    ],
)
def test_what_is_no_request_is_refused(line: str, code: str, id_: object, words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_request(line.encode())
    assert (caught.value.code, caught.value.id) == (code, id_) or "[" * 9 in line
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_values_of_a_tap_are_checked_with_their_field() -> None:
    data = json.loads(write_request(Start(taps=[SPEC])))
    data["taps"][0]["percent"] = 101
    with pytest.raises(ProtocolError, match=r"^taps\[0\]: percent: 101.0 is not between 0 and 100$"):
        read_request(json.dumps(data).encode())


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_request(data)


def test_a_request_that_is_too_long_is_not_sent() -> None:
    class Long(Request, frozen=True, kw_only=True, tag="long"):
        text: str

    with pytest.raises(ProtocolError, match="more than a request may have"):
        write_request(Long(text="x" * MAX_MESSAGE))


def test_a_name_of_bytes_that_are_no_text_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match=r"^'web\\udcff' is not UTF-8$"):
        write_request(Stop(name="web\udcff"))


def test_replies() -> None:
    assert read_reply(write_reply(3, {"taps": []})) == {"taps": []}
    with pytest.raises(ProtocolError, match="no tap") as caught:
        read_reply(write_error(3, "not_found", "no tap"))
    assert (caught.value.code, caught.value.id, caught.value.problems) == ("not_found", 3, ())
    assert b"problems" not in write_error(3, "not_found", "no tap")
    with pytest.raises(ProtocolError, match="a, and 1 more") as caught:
        read_reply(write_error(3, "refused", "a, and 1 more", ["a", "b"]))
    assert caught.value.problems == ("a", "b")
    with pytest.raises(ProtocolError, match="not a response"):
        read_reply(b"hello")


def test_an_error_may_name_what_is_no_text() -> None:
    """As a file in taps.d whose name is not UTF-8: the daemon would not answer at all."""
    with pytest.raises(ProtocolError, match=r"^z\\udcff: bad$") as found:
        read_reply(write_error(3, "refused", "z\udcff: bad", ["z\udcff: bad", "z\udcff: worse"]))
    assert found.value.problems == ("z\\udcff: bad", "z\\udcff: worse")


def test_the_reply_of_another_version_is_not_read_as_ours_but_its_refusal_is() -> None:
    said = "the daemon speaks version 2 of the protocol, not 1"
    with pytest.raises(ProtocolError, match=said) as caught:
        read_reply(b'{"v":2,"id":3,"ok":{"taps":"other"}}')
    assert caught.value.code == "version"
    with pytest.raises(ProtocolError, match="no such thing"):
        read_reply(b'{"v":2,"error":{"code":"version","message":"no such thing"}}')


@given(st.lists(st.binary(max_size=20).filter(lambda each: b"\n" not in each)), st.integers(1, 9))
def test_lines_come_out_however_they_are_cut(lines: list[bytes], step: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    reader = Lines(20)
    found = []
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        while (line := reader.next()) is not None:
            found.append(line)
    assert found == lines
    assert len(reader) == 0


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_over_the_limit_is_refused(end: bytes) -> None:
    reader = Lines(4)
    reader.feed(b"1234\n12345" + end)
    assert reader.next() == b"1234"
    with pytest.raises(ProtocolError, match="longer than 4 bytes"):
        reader.next()
