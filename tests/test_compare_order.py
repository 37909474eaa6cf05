# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from differences import doc
from tapmirror.compare.order import by_member, by_value


def test_the_order_of_more_elements_than_nodes_is_not_looked_for() -> None:
    one = [*range(30)]
    assert doc(one, one[::-1], nodes=30) == ["order body"]
    assert {*doc(one, one[::-1], nodes=29)} == {"value body[]"}


def test_elements_belong_together_by_a_member_or_by_being_equal() -> None:
    assert by_member([{"n": 1, "id": 7}, {"n": 1, "id": 8}], [{"id": 8}, {"id": 7}]) == [1, 0]
    assert by_member([{"n": 1}, {"n": 1}], [{"n": 1}, {"n": 1}]) is None
    assert by_member([{"n": 1}, 2], [2, {"n": 1}]) is None
    assert by_value([b"1", b"2", b"3", b"4"], [b"4", b"3", b"2", b"9"]) == [3, 2, 1, 0]
    assert by_value([b"1", b"2", b"3"], [b"3", b"8", b"9"]) is None
    assert by_value([b"1", b"2", b"3", b"4"], [b"4", b"3", b"8", b"9"]) == [2, 3, 1, 0]
