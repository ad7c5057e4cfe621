"""The lexicon's phrases as they are, against a search by force, however the text is cut. Apart: test_lexicon_spelling."""

import weakref
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.window import Hit
from relay_plugins.lexicon import Lexicon, Manner, Phrases, PhraseScanner
from relay_plugins.lexicon import phrases as module
from relay_plugins.lexicon.phrases import canonical

Span = tuple[int, int]


def phrases(words: Iterable[str], *, whole_words: bool = True) -> Phrases:
    return Phrases([(canonical(word), Manner("bad", "block", whole_words)) for word in words], "lexicon")


def spans(hits: Sequence[Hit]) -> list[Span]:
    return [(hit.start, hit.end) for hit in hits]


def found(words: Iterable[str], text: str, *, whole_words: bool = True) -> list[str]:
    """The phrases found in a text that is there as a whole."""
    text = fold(text)
    return [text[start:end] for start, end in sorted(spans(phrases(words, whole_words=whole_words).hits(text, "", "")))]


# By force. A word here is Latin: the alphabet of the texts below has `a`, `b` and `1`, and Han and others around them.

ALPHABET = "ab1你好.ย"  # nothing in which a phrase could stand apart
TEXTS = st.text(ALPHABET, max_size=14)
WORDS = st.lists(st.text(ALPHABET, min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=6)
CUTS = st.lists(st.integers(0, 14), max_size=6)


class Reference:
    """What a scanner has to say after each piece of a text, found by looking at all phrases at all places."""

    def __init__(self, words: Iterable[str], whole_words: bool) -> None:
        self.words = {word.strip() for word in words}
        self.whole_words = whole_words
        self.text = ""
        self.told: set[Span] = set()

    def in_word(self, char: str) -> bool:
        return self.whole_words and char in tuple("ab1")

    def waits(self, word: str) -> bool:
        return self.in_word(word[-1])

    def feed(self, text: str, *, ended: bool = False) -> list[Span]:
        """The hits decided by these characters, or by the end after them."""
        self.text += text
        every = self.text
        hits = {
            (start, start + len(word))
            for word in self.words
            for start in range(len(every))
            if every.startswith(word, start)
            and not (start and self.in_word(word[0]) and self.in_word(every[start - 1]))
            and self.ends(word, every[start + len(word) :], ended)
        }
        new = sorted(hits - self.told)
        self.told |= hits
        return new

    def ends(self, word: str, rest: str, ended: bool) -> bool:
        return not self.waits(word) or (not self.in_word(rest[0]) if rest else ended)

    @property
    def held(self) -> int:
        """The longest tail that begins a phrase, or is one that waits for its end."""
        tails = (self.text[start:] for start in range(len(self.text)) if self.starts(start))
        heads = {word[:length] for word in self.words for length in range(1, len(word) + self.waits(word))}
        return max((len(tail) for tail in tails if tail in heads), default=0)

    def starts(self, start: int) -> bool:
        return not (start and self.in_word(self.text[start]) and self.in_word(self.text[start - 1]))


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


@given(WORDS, st.lists(st.tuples(TEXTS, CUTS), min_size=1, max_size=3), st.booleans())
def test_a_scanner_is_a_search_by_force(words: list[str], runs: list[tuple[str, list[int]]], whole_words: bool) -> None:
    """Each hit is told once, as soon as it is decided; what may begin one is held. Runs follow each other."""
    scanner = PhraseScanner(phrases(words, whole_words=whole_words))
    reference = Reference(words, whole_words)
    for text, cuts in runs:
        for piece in pieces(text, cuts):
            assert reference.feed(piece) == sorted(spans(scanner.feed(piece)))
            assert reference.held <= scanner.held or not piece
        assert reference.feed("", ended=True) == sorted(spans(scanner.finish()))
        assert 0 == scanner.held
        assert () == tuple(scanner.finish())


@given(WORDS, TEXTS, st.booleans())
def test_what_is_not_held_is_in_no_later_hit(words: list[str], text: str, whole_words: bool) -> None:
    """A character that was once free to leave is never part of what is found later; freedom is never taken back."""
    scanner = PhraseScanner(phrases(words, whole_words=whole_words))
    free = 0
    for position, char in enumerate(text, 1):
        hits = scanner.feed(char)
        assert all(hit.start >= free for hit in hits)
        assert free <= position - scanner.held
        free = position - scanner.held
    assert all(hit.start >= free for hit in scanner.finish())


@given(WORDS, TEXTS, CUTS, st.booleans())
def test_a_text_that_comes_is_the_text_that_is_there(
    words: list[str], text: str, cuts: list[int], whole_words: bool
) -> None:
    """A scanner finds over a whole text what one look at it finds."""
    lexicon = phrases(words, whole_words=whole_words)
    scanner = PhraseScanner(lexicon)
    hits = [hit for piece in pieces(text, cuts) for hit in scanner.feed(piece)]
    assert sorted(lexicon.hits(text, "", "")) == sorted([*hits, *scanner.finish()])


@given(WORDS, st.lists(TEXTS, max_size=6), st.booleans())
def test_what_is_recalled_is_what_is_found(words: list[str], texts: list[str], whole_words: bool) -> None:
    """The first time, and when it is remembered."""
    lexicon = phrases(words, whole_words=whole_words)
    for text in texts * 2:
        assert lexicon.hits(text, "", "") == lexicon.recall(text)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the length of a text, and by that of all together, where even an empty one counts."""
    monkeypatch.setattr(module, "LOOK_CHARS", 10)
    monkeypatch.setattr(module, "LOOKS_CHARS", 400)
    lexicon = phrases(["敏感词"])
    remembered = lexicon.recall.__self__
    for number in range(50):
        assert [(0, 3)] == spans(lexicon.recall(f"敏感词 {number}"))
        assert not lexicon.recall("好" * 11)
        assert 1 <= len(remembered) <= 6
        assert sum(map(len, remembered)) + 64 * len(remembered) <= 400


def test_a_phrase_in_a_longer_one_is_told_once() -> None:
    """It is held as the head of the longer one after it was found, and is not found again."""
    scanner = PhraseScanner(phrases(["敏感", "敏感词"]))
    assert [[(0, 2)], [], [(3, 5)], [(3, 6)]] == [spans(scanner.feed(piece)) for piece in ("敏感", "的", "敏感", "词")]
    assert () == tuple(scanner.finish())


def test_a_surface_resumes() -> None:
    """A phrase that an end has cut is found whole; a word that the end has decided is not told again."""
    scanner = PhraseScanner(phrases(["敏感词", "ass"]))
    pieces = ("an ass", None, None, "", " 敏感", None, "词")
    told = [spans(scanner.finish() if piece is None else scanner.feed(piece)) for piece in pieces]
    assert [[], [(3, 6)], [], [], [], [], [(7, 10)]] == told


class Words(NamedTuple):
    phrase: str
    text: str
    hits: int


@pytest.mark.parametrize(
    "case",
    [
        Words("ass", "ass", 1),
        Words("ass", "class asset bass", 0),
        Words("ass", "(ass) ass. Ass-ASS", 4),
        Words("ass", "他说ass吗ass", 2),
        Words("ass", "ass1 1ass", 0),
        Words("ass", "ass_ ass's", 2),
        Words("ass", "assé", 0),
        Words("ass", "ＡＳＳ а\u200bss", 2),
        Words("a b", "aa b a bb a b", 1),
        Words("c++", "c++11 ac++ c++", 2),
        Words("-x", "a-x a-xb", 1),
        Words("卖ice", "买卖ice吗 卖iced", 1),
        Words("ice毒", "nice毒 ice毒品", 1),
        Words("敏感", "很敏感词", 1),
        Words("наркотик", "наркотик, наркотики", 1),
        Words("ยาเสพติด", "ขายยาเสพติดที่นี่", 1),
        Words("마약", "마약을", 1),
        Words("سلاح", "والسلاح", 1),
    ],
)
def test_whole_words(case: Words) -> None:
    """Latin, Greek and Cyrillic phrases are whole words; where words are not set apart, phrases are found anywhere."""
    assert case.hits == len(found([case.phrase], case.text))


def test_parts_of_words() -> None:
    """Whole words can be turned off, and no hit then waits for a word's end."""
    assert ["ass", "ass"] == found(["ass"], "class asset", whole_words=False)
    scanner = PhraseScanner(phrases(["ass"], whole_words=False))
    assert [(2, 5)] == spans(scanner.feed("class"))


def test_overlapping_phrases() -> None:
    """Every phrase is found, also inside and across others."""
    assert ["一二", "一二三", "二三", "二三四"] == found(["一二三", "二三", "一二", "二三四"], "一二三四")


def test_phrases_are_folded_once() -> None:
    """Phrases are compared as texts are: by what is seen of them. Equal ones are one, and spaces around are none."""
    assert 1 == len(phrases(["國語", "国语", " 国\u200b语 ", "\u200b 国语\u3000"]))
    assert ["国语"] == found(["國語"], "中國\u200b語言")
    assert 3 == phrases(["ab", "abc"]).longest


@pytest.mark.parametrize("phrase", ["", " \t", "\u200b", "\u200b \u200b", "\u3000"])
def test_a_phrase_of_nothing(phrase: str) -> None:
    """A phrase of which nothing is seen would be everywhere: it is refused, and shown."""
    with pytest.raises(ValueError, match="no visible character") as caught:
        Lexicon(words=("ok", phrase))
    assert repr(phrase) in str(caught.value)


def test_a_hit_says_what_it_is() -> None:
    """Label, action and moderator go with each hit; a list that only reviews does not block."""
    assert [Hit(1, 3, "politics", "review", "lexicon")] == Lexicon(
        words=("敏感",), label="politics", action="review"
    ).find("很敏感")
    assert [Hit(0, 2, "lexicon", "block", "lexicon")] == Lexicon(words=("敏感",)).scanner().feed("敏感")


def test_a_list_goes_with_its_last_reader() -> None:
    """A list that was replaced leaves at once when nobody reads by it any more, and not before."""
    lexicon = phrases(["敏感词"])
    scanner = PhraseScanner(lexicon)
    gone = weakref.ref(lexicon)
    del lexicon
    scanner.feed("敏感")
    assert gone() is not None
    del scanner
    assert gone() is None
