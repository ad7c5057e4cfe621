from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.fold import disguised, fold
from relay.pure.ruling import Span
from relay.pure.transcript import MAX_SHOWN_CHARS, Passage, Transcript, len_of_written

# ﷺ has a copy of 18 characters, … of three, 가 of two, Ａ of another case and width; the last three have none.
CHARS = "ab世ﷺ…가Ａ\u200b\u0301\ufe0f"
PIECES = st.lists(st.text(CHARS, max_size=6), max_size=8)
EVEN = "ab世Ａ。"


def transcript(pieces: Sequence[str]) -> Transcript:
    made = Transcript()
    for piece in pieces:
        made.append(piece, fold(piece))
    return made


def passage(text: str) -> Passage:
    return Passage(0, fold(text), 0, text)


# Passages


@given(pieces=PIECES, ends=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_a_passage_is_what_stands_between_two_positions(pieces: list[str], ends: tuple[int, int]) -> None:
    """What was written covers the copy, halves no original, and begins no later than it was asked to."""
    text = "".join(pieces)
    whole = transcript(pieces)
    start, end = sorted(min(end, whole.end) for end in ends)
    part = whole.passage(start, end)
    assert part.start <= start
    assert part.copy == fold(text)[part.start : end]
    assert fold(part.written).startswith(part.copy)
    assert text[part.before : part.before + len(part.written)] == part.written
    assert len(fold(text[: part.before])) == part.start
    if part.start < start:  # it begins with the original that the position halves
        visible = next(char for char in part.written if fold(char))
        assert part.start + len(fold(visible)) > start
    assert part.originals(start) <= part.originals(end) <= len(text)
    for position in (start, end):
        before = part.originals(position)
        assert len(fold(text[:before])) <= position
        visible = next((char for char in text[before:] if fold(char)), "")
        assert len(fold(text[:before] + visible)) > position or not visible


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_what_is_forgotten_changes_no_passage_behind_it(pieces: list[str], cuts: list[int]) -> None:
    whole, kept = transcript(pieces), transcript(pieces)
    for cut in sorted(min(cut, whole.end) for cut in cuts):
        kept.forget(cut)
        assert kept.start <= cut
        assert kept.end == whole.end
        for end in (cut, (cut + whole.end) // 2, whole.end):
            assert kept.passage(cut, end) == whole.passage(cut, end)


@given(pieces=PIECES, cut=st.integers(0, 60))
def test_it_may_be_forgotten_while_it_comes(pieces: list[str], cut: int) -> None:
    """A text that goes on after something was forgotten is the one that comes whole."""
    kept = Transcript()
    for piece in pieces:
        kept.append(piece, fold(piece))
        kept.forget(min(cut, kept.end))
    cut = min(cut, kept.end)
    assert kept.passage(cut, kept.end) == transcript(pieces).passage(cut, kept.end)


@given(text=st.text(EVEN, max_size=30), cut=st.integers(0, 30))
def test_where_every_copy_is_one_character_positions_are_the_same(text: str, cut: int) -> None:
    whole = transcript([text])
    cut = min(cut, len(text))
    assert whole.passage(cut, len(text)) == Passage(cut, fold(text[cut:]), cut, text[cut:])


@given(text=st.text(CHARS, max_size=20), canonical=st.integers(0, 60))
def test_how_many_originals_cover_a_length(text: str, canonical: int) -> None:
    """As few as possible."""
    length = len_of_written(text, canonical)
    assert len(fold(text[:length])) >= min(canonical, len(fold(text)))
    if length:
        assert len(fold(text[: length - 1])) < canonical


def test_positions_count_from_a_start_of_their_own() -> None:
    """A text that goes on where another ended."""
    made = Transcript(100, 120)
    made.append("a\u200bb", "ab")
    assert made.end == 102
    assert made.passage(101, 102) == Passage(101, "b", 121, "\u200bb")
    assert made.passage(101, 102).originals(102) == 123


# What is shown


@pytest.mark.parametrize("text", ["", "Hello", "ＨＥＬＬＯ", "你好。", "Ça va?"])
def test_what_hides_nothing_is_shown_as_it_was_written(text: str) -> None:
    assert passage(text).shown == text


@pytest.mark.parametrize("text", ["b\u200bad", "𝐛ad", "bаd"], ids=["removed", "fancy", "Cyrillic"])
def test_what_hides_something_is_shown_with_its_copy(text: str) -> None:
    assert passage(text).shown == f"{text}\nbad"


def test_what_is_too_long_with_its_copy_is_shown_as_the_copy() -> None:
    text = "b\u200bad" * 1700
    assert passage(text).shown == "bad" * 1700
    assert len(passage("a\u200b" * 3333).shown) == 9_999 + 1
    assert passage("a\u200b" * 3334).shown == "a" * 3334


@given(text=st.text(CHARS, max_size=30))
def test_no_more_is_shown_than_a_service_takes(text: str) -> None:
    long = text * 400
    part = passage(long)
    if len(part.copy) <= MAX_SHOWN_CHARS:
        assert len(part.shown) <= MAX_SHOWN_CHARS
        assert disguised(long) or part.shown == long


# Places


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("a bad day", Span(2, 5), [(2, 5)]),
        ("a bad day", Span(2, 5, "bad"), [(2, 5)]),
        ("a bad day", Span(3, 6, "bad"), [(2, 5)]),
        ("a bad day", Span(0, 0, "bad"), [(2, 5)]),
        ("bad bad", Span(0, 0, "bad"), [(0, 3), (4, 7)]),
        ("aaa", Span(0, 0, "aa"), [(0, 2), (1, 3)]),
        ("a BAD day", Span(0, 0, "bad"), [(2, 5)]),
        ("a bad day", Span(0, 0, "ＢＡＤ"), [(2, 5)]),
        ("b\u200bad", Span(0, 4), [(0, 3)]),
        ("b\u200bad", Span(5, 8, "bad"), [(0, 3)]),
        ("b\u200bad", Span(5, 6), [(0, 1)]),
        ("b\u200bad", Span(0, 0, "bad"), [(0, 3)]),
        ("b\u200bad", Span(0, 0, "b\u200bad"), [(0, 3)]),
        ("ＢＡＤ bad", Span(0, 3, "bad"), [(0, 3)]),
        ("ＢＡＤ bad", Span(0, 0, "bad"), [(0, 3), (4, 7)]),
        ("a bad day", Span(2, 5, "\u200b"), None),
        ("ﷺbad", Span(1, 4, "bad"), [(18, 21)]),
        ("ﷺbad", Span(0, 1), [(0, 18)]),
        # What cannot be found, or covers nothing.
        ("a bad day", Span(0, 0), None),
        ("a bad day", Span(2, 50), None),
        ("a bad day", Span(-1, 5), None),
        ("a bad day", Span(5, 2), None),
        ("a bad day", Span(2, 5, "good"), None),
        ("a bad day", Span(0, 0, "\u200b"), None),
        ("b\u200bad", Span(1, 2), None),
        ("b\u200bad", Span(4, 5), None),
        ("b\u200bad", Span(2, 7), None),
        ("b\u200bad", Span(0, 8), None),
    ],
)
def test_where_a_span_stands(text: str, span: Span, expected: list[tuple[int, int]] | None) -> None:
    """In canonical characters: where it is said to, else wherever its keyword stands, however that is written."""
    assert passage(text).places((span,)) == expected


def test_positions_are_those_of_the_whole_text() -> None:
    whole = transcript(["xﷺy\u200b a bad day"])
    part = whole.passage(22, whole.end)
    assert part.places((Span(part.shown.index("bad"), part.shown.index("bad") + 3, "bad"),)) == [(23, 26)]
    assert Passage(10, "bad", 10, "bad").places((Span(0, 3),)) == [(10, 13)]


def test_one_that_cannot_be_found_makes_all_uncertain() -> None:
    """Nobody can say what else was meant."""
    assert passage("a bad day").places((Span(2, 5), Span(0, 0, "good"))) is None
    assert passage("a bad day").places(()) is None


def test_places_in_a_copy_that_is_shown_alone() -> None:
    part = passage("a\u200b" * 4000 + "bad")
    assert part.shown == part.copy
    assert part.places((Span(4000, 4003, "bad"), Span(0, 1))) == [(4000, 4003), (0, 1)]


WORDS = ("bad", "敏感", "ﷺ")


@given(
    pieces=st.lists(
        st.one_of(st.sampled_from((*WORDS, "b\u200bad", "ＢＡＤ", "敏\ufe0f感")), st.text("ad世\u200b", max_size=4))
    ),
    ends=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    shift=st.integers(-2, 2),
)
def test_a_word_that_was_seen_is_found_in_the_text(pieces: list[str], ends: tuple[int, int], shift: int) -> None:
    """Whatever part of the text was shown, and wrong positions with the word are as good as right ones."""
    whole = transcript(pieces)
    copy = fold("".join(pieces))
    start, end = sorted(min(end, whole.end) for end in ends)
    part = whole.passage(start, end)
    for word in WORDS:
        stands = [at for at in range(len(part.shown)) if part.shown.startswith(word, at)]
        for at in stands:
            places = part.places((Span(at + shift, at + shift + len(word), word),))
            assert places is not None
            assert all(copy[first:last] == fold(word) for first, last in places)
            exact = part.places((Span(at, at + len(word), word),))
            assert exact is not None
            assert set(exact) <= set(places) or shift
