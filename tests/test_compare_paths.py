# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differences import doc
from tapmirror.compare.rules import Rules
from tapmirror.spec import Compare, Level


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("meta", True),
        ("meta.time", True),
        ("meta.tim", False),
        ("met", False),
        ("*.time", True),
        ("**.time", True),
        ("time", False),
        ("body.meta.time", True),
    ],
)
def test_ignored_paths(path: str, ignored: bool) -> None:
    assert doc({"meta": {"time": 1}}, {"meta": {"time": 2}}, ignore_paths=(path,)) == (
        [] if ignored else ["value body.meta.time"]
    )


@pytest.mark.parametrize("path", ["items[].id", "**.id", "items", "items[]", "items[].*", "[].x", "header.vary"])
def test_ignored_paths_through_arrays(path: str) -> None:
    ignored = doc({"items": [{"id": 1}, {"id": 3}]}, {"items": [{"id": 2}, {"id": 4}]}, ignore_paths=(path,))
    assert (ignored == []) == (path not in ("[].x", "header.vary"))
    assert doc([{"id": 1}], [{"id": 2}], ignore_paths=("[].id",)) == []
    assert doc({"id": 1}, {"id": 2}, ignore_paths=("**.id",)) == []


def covers(pattern: list[str], path: list[str]) -> bool:
    """Step by step, as the reference says."""
    if not pattern:
        return True
    if pattern[0] == "**":
        names = [at for at, step in enumerate(path) if step != "[]"]
        return any(covers(pattern[1:], path[at:]) for at in names)
    if not path or (path[0] == "[]") != (pattern[0] == "[]"):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0].replace("[]", "[[]]")) and covers(pattern[1:], path[1:])


NAMES = st.sampled_from(["a", "ab", "abc", "acb", "ba"])


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.one_of(NAMES, st.sampled_from(["**", "*", "a*", "*b", "a*c", "*a*b", "a[]", "*[]"])), min_size=1),
    st.lists(st.one_of(NAMES, NAMES.map(lambda name: name + "[]")), min_size=1),
)
def test_ignored_paths_are_taken_step_by_step(pattern: list[str], path: list[str]) -> None:
    ignored = Rules(Compare(level=Level.BODY, ignore_paths=(".".join(pattern)[:200],))).ignored
    assert ignored is not None
    steps = [".".join(each).replace("[]", ".[]").split(".") for each in (pattern, path)]
    assert bool(ignored.match("body." + ".".join(path))) == covers(*steps)


@pytest.mark.parametrize(
    "pattern", ["**.a." * 39 + "b", "**.*a*a*a." * 19 + "b", "*a" * 98 + "*b", "**.a" * 50, "**." * 66 + "b"]
)
def test_no_path_takes_long_to_be_matched(pattern: str) -> None:
    """Tried in every way that there is, each of these would take longer than the world is old."""
    ignored = Rules(Compare(level=Level.BODY, ignore_paths=(pattern[:200],))).ignored
    assert ignored is not None
    for path in (".a" * 98, "." + "a" * 195, ".aaa" * 49, "[].a" * 49, "[]" * 98):
        assert not ignored.match(f"body{path}"[:200]) or "b" not in pattern
