"""The last of what has happened, by kind."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from relay.pure.recent import Recent

KINDS = ("rare", "common", "flood")


class Everything:
    """The same, with all of it kept and looked through."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.all: list[tuple[int, str, str]] = []

    def add(self, kind: str, item: str) -> None:
        self.all.append((len(self.all) + 1, kind, item))

    def there(self) -> set[int]:
        return {number for kind in KINDS for number, of, _ in [e for e in self.all if e[1] == kind][-self.kept :]}

    def since(self, number: int, kinds: frozenset[str]) -> tuple[int, list[tuple[int, str]]]:
        there = self.there()
        newer = [each for each in self.all if each[0] > number]
        gone = [each for each in newer if each[0] not in there]
        kept = [(each[0], each[2]) for each in newer if each[0] in there and each[1] in kinds]
        return (len(gone) if any(each[1] in kinds for each in gone) else 0), kept


@given(
    st.integers(1, 5),
    st.lists(st.sampled_from(KINDS), max_size=40),
    st.lists(st.tuples(st.integers(0, 45), st.frozensets(st.sampled_from(KINDS))), max_size=8),
)
def test_it_is_what_looking_through_everything_finds(
    kept: int, came: list[str], asked: list[tuple[int, frozenset[str]]]
) -> None:
    """Whatever comes, and whatever is asked for: in order, and with the number of those that are gone."""
    recent: Recent[str] = Recent(KINDS, kept)
    model = Everything(kept)
    for number, kind in enumerate(came, 1):
        assert number == recent.add(kind, f"{kind} {number}")
        model.add(kind, f"{kind} {number}")
    for place, kinds in asked:
        number = min(place, recent.last)
        assert model.since(number, kinds) == recent.since(number, kinds)


@given(st.lists(st.sampled_from(KINDS), max_size=60), st.data())
def test_who_asks_often_hears_each_once(came: list[str], data: st.DataObject) -> None:
    """Heard and gone are together all that came, however the questions fall."""
    recent: Recent[int] = Recent(KINDS, 4)
    heard, gone, seen, numbers = [], 0, 0, count(1)
    for kind in came:
        recent.add(kind, next(numbers))
        if data.draw(st.booleans()):
            missed, news = recent.since(seen, KINDS)
            heard += [item for _, item in news]
            gone += missed
            seen = recent.last
    missed, news = recent.since(seen, KINDS)
    heard += [item for _, item in news]
    assert sorted(set(heard)) == heard
    assert len(came) == len(heard) + gone + missed


def test_a_flood_pushes_out_its_own_kind_only() -> None:
    """And who asks for the others is told of nothing gone."""
    recent: Recent[int] = Recent(KINDS, 3)
    recent.add("rare", 0)
    for item in range(100):
        recent.add("flood", item)
    assert (0, [(1, 0)]) == recent.since(0, ["rare", "common"])
    assert (97, [(1, 0), (99, 97), (100, 98), (101, 99)]) == recent.since(0, KINDS)


def test_the_last_ones() -> None:
    """So many of the kinds, or as many as there are."""
    recent: Recent[str] = Recent(KINDS, 10)
    for kind in ("rare", "flood", "flood", "common"):
        recent.add(kind, kind)
    assert [] == recent.before(0, KINDS)
    assert [(3, "flood"), (4, "common")] == recent.before(2, KINDS)
    assert [(1, "rare")] == recent.before(9, ["rare"])
