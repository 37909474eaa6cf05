# SPDX-License-Identifier: Apache-2.0
"""What is kept of the taps: whole or as before, and no file stops a daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.supervisor import state
from tapmirror.supervisor.state import Kept, State


def spec(name: str) -> TapSpec:
    return TapSpec(iface="eth0", ports=(80, 81), shadows=(parse_shadow("s.test:80", copies=2),), name=name, percent=5)


STATE = State(
    taps=[Kept(spec=spec("a")), Kept(spec=spec("b"), percent=1.0, origin="x.yaml", paused=True, ends_at=1e9)],
    stopped=["c"],
)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    assert state.load(tmp_path) == (State(), [])
    state.save(tmp_path, STATE)
    state.save(tmp_path, STATE)
    assert state.load(tmp_path) == (STATE, [])
    assert [path.name for path in tmp_path.iterdir()] == [state.NAME]
    assert (tmp_path / state.NAME).stat().st_mode & 0o777 == 0o600


def test_what_was_left_beside_it_is_no_obstacle_and_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"{state.NAME}.new").symlink_to(victim)
    state.save(tmp_path, STATE)
    assert state.load(tmp_path) == (STATE, [])
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: giving a file away")
def test_a_file_of_another_user_is_not_believed(tmp_path: Path) -> None:
    """The directory lets nobody put it there; its owner could still change it, if he may reach it."""
    state.save(tmp_path, STATE)
    os.chown(tmp_path / state.NAME, 4001, -1)
    found, (problem,) = state.load(tmp_path)
    assert found == State()
    assert "taps.json: users other than root can write to it (owner 4001, mode 600); set aside as taps.json." in problem
    assert problem.endswith(", beginning without taps")


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    state.save(tmp_path, STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match="No space"):
            state.save(tmp_path, State())
    assert state.load(tmp_path) == (STATE, [])
    assert [path.name for path in tmp_path.iterdir()] == [state.NAME]


def tampered(change: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "taps": [], "stopped": [], **change}).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\0" * 4096, "invalid character"),
        (b"[" * 100_000, ""),
        (b"\xff\xfe", ""),
        (tampered({"version": 2, "taps": "of another shape"}), "its version is 2, and this tapmirror reads 1"),
        (tampered({"version": "1"}), "Expected `int`"),
        (tampered({"taps": 5}), "Expected `array`"),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / state.NAME
    path.write_bytes(data)
    found, (problem,) = state.load(tmp_path)
    assert found == State()
    assert words in problem and "set aside as taps.json." in problem and "\n" not in problem
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == data and aside.name.endswith(".unread")
    state.save(tmp_path, STATE)
    assert state.load(tmp_path) == (STATE, [])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "Is a directory"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_set_aside_and_holds_up_nobody(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / state.NAME)
    found, (problem,) = state.load(tmp_path)
    assert found == State() and f"{words}; set aside as taps.json." in problem
    state.save(tmp_path, STATE)
    assert state.load(tmp_path) == (STATE, [])


def test_a_file_that_a_disk_does_not_give_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(tmp_path, STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", raising(OSError(5, "Input/output error")))
        found, (problem,) = state.load(tmp_path)
    assert found == State() and "Input/output error; set aside as" in problem
    state.save(tmp_path, State())
    (aside,) = tmp_path.glob("*.unread")
    aside.rename(tmp_path / state.NAME)
    assert state.load(tmp_path) == (STATE, [])


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_file_of_any_size_costs_no_more_than_its_bound(tmp_path: Path) -> None:
    with (tmp_path / state.NAME).open("wb") as file:
        file.truncate(1 << 36)
    found, (problem,) = state.load(tmp_path)
    assert found == State() and "longer than" in problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"of_a_later_version": 1}}, "Object contains unknown field `of_a_later_version`"),
        ({"percent": 500}, "percent: 500.0 is not between 0 and 100"),
    ],
)
def test_one_tap_that_is_not_understood_costs_no_other(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    state.save(tmp_path, STATE)
    path = tmp_path / state.NAME
    data = json.loads(path.read_bytes())
    data["taps"][0] |= {**change, "spec": data["taps"][0]["spec"] | change.get("spec", {})}
    path.write_text(json.dumps(data))
    found, problems = state.load(tmp_path)
    assert found == State(taps=STATE.taps[1:], stopped=STATE.stopped)
    assert f"taps[0]: {words}" in problems[0]
    assert "set aside" in problems[1]


def test_what_has_its_default_is_not_written(tmp_path: Path) -> None:
    state.save(tmp_path, State(taps=[Kept(spec=spec("a"))]))
    (tap,) = json.loads((tmp_path / state.NAME).read_bytes())["taps"]
    assert set(tap["spec"]) == {"iface", "ports", "shadows", "name", "percent"}
