"""Identifiers sort by when they were made, also within one millisecond."""

import time

from backend.db.ids import new_id


def test_ids_sort_by_their_creation() -> None:
    made = [new_id() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_an_id_is_a_uuid_7_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    after = time.time_ns() // 1_000_000
    assert made.version == 7
    assert before <= made.int >> 80 <= after
    assert str(made)[19] in "89ab"  # the variant of RFC 9562
