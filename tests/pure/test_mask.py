import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.fold import fold, original_length
from relay.pure.mask import masked

# ﷺ has a copy of 18 characters, … of three, 가 of two; the last three have none.
TEXT = st.text("ab世ﷺ…가\u200b\u0301\ufe0f", max_size=12)
PLACES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted).map(tuple), max_size=3)


@pytest.mark.parametrize(
    ("text", "masks", "expected"),
    [
        ("a bad day", [(2, 5)], "a *** day"),
        ("a bad day", [], "a bad day"),
        ("a bad day", [(0, 1), (8, 9)], "* bad da*"),
        ("a bad day", [(2, 4), (3, 5)], "a *** day"),
        ("a bad day", [(5, 5)], "a bad day"),
        ("a bad day", [(50, 60)], "a bad day"),
        ("赤旗", [(0, 1)], "*旗"),
        ("b\u200ba\u200bd", [(0, 3)], "*****"),
        ("\u200bbad\u200b", [(0, 3)], "\u200b***\u200b"),
        ("ba\u200bd", [(0, 2)], "**\u200bd"),
        ("aﷺb", [(3, 4)], "a*b"),
        ("aﷺb", [(0, 1), (19, 20)], "*ﷺ*"),
        ("a…b", [(4, 5)], "a…*"),
    ],
)
def test_what_a_mask_covers_is_a_star(text: str, masks: list[tuple[int, int]], expected: str) -> None:
    """A star for each original of which a mask covers any part, and for those that hide inside the mask."""
    assert masked(text, 0, masks) == expected


@given(text=TEXT, masks=PLACES, start=st.integers(0, 40))
def test_positions_count_from_where_the_text_begins(text: str, masks: list[tuple[int, int]], start: int) -> None:
    """A text that begins at some position is masked as one that begins there behind others."""
    shifted = [(first - start, last - start) for first, last in masks]
    assert masked(text, start, masks) == masked(text, 0, shifted)


@given(text=TEXT, masks=PLACES)
def test_it_is_as_long_as_it_was_and_nothing_else_changes(text: str, masks: list[tuple[int, int]]) -> None:
    result = masked(text, 0, masks)
    assert len(result) == len(text)
    assert all(after in (before, "*") for before, after in zip(text, result, strict=True))


@given(text=TEXT, masks=PLACES, cut=st.integers(0, 12))
def test_it_may_come_in_pieces(text: str, masks: list[tuple[int, int]], cut: int) -> None:
    """Masking two pieces is masking the whole, wherever it was cut."""
    pieces = masked(text[:cut], 0, masks) + masked(text[cut:], len(fold(text[:cut])), masks)
    assert pieces == masked(text, 0, masks)


@given(text=TEXT, start=st.integers(0, 40), length=st.integers(1, 40))
def test_no_part_of_what_is_covered_is_left(text: str, start: int, length: int) -> None:
    """What stands before a mask is what lies wholly before it."""
    end = start + length
    result = masked(text, 0, [(start, end)])
    kept = original_length(text, start)
    assert result[:kept] == text[:kept]
    position = 0
    for before, after in zip(text, result, strict=True):
        width = len(fold(before))
        if width and position < end and position + width > start:
            assert after == "*"
        position += width
