"""New ids and names of what is imported beside its original."""

from backend.archives.identity import Kept, Renumbered, free_name
from backend.db.ids import new_id


def test_new_ids_are_others_and_keep_their_order() -> None:
    old = sorted(new_id() for _ in range(2000))  # many of them of one millisecond
    ids = Renumbered(frozenset())
    new = [ids.of(number) for number in old]
    assert new == sorted(new)
    assert not set(new) & set(old)
    assert len(set(new)) == len(old)
    assert new == [ids.of(number) for number in old], "always the same within one import"
    assert not set(new) & {Renumbered(frozenset()).of(number) for number in old}
    assert {number.version for number in new} == {7}
    assert Kept().of(old[0]) == old[0]


def test_texts_tell_of_the_new_ids() -> None:
    told, other = new_id(), new_id()
    ids = Renumbered({told})
    text = f"Client {told} of {other}, twice {told}."
    assert ids.in_text(text) == text.replace(str(told), str(ids.of(told)))
    assert Kept().in_text(text) == text


def test_names_that_are_taken_get_a_number() -> None:
    assert free_name("north", {"south"}) == "north"
    assert free_name("north", {"north", "north (2)"}) == "north (3)"
    long = "n" * 100
    assert free_name(long, {long}) == "n" * 96 + " (2)"
