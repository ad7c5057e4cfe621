"""Phrases spelt otherwise, apart or with digits for letters: against a search by force, and class by class."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, cycle, pairwise
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.window import Hit
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner
from relay_plugins.lexicon import phrases as module

Span = tuple[int, int]


def phrases(words: Iterable[str], *, whole_words: bool = True) -> Phrases:
    return Phrases([(word, Manner("bad", "block", whole_words)) for word in words], "lexicon")


def spans(hits: Sequence[Hit]) -> list[Span]:
    return sorted((hit.start, hit.end) for hit in hits)


# By force: every piece of a text is laid beside every phrase, letter by letter. Words are of a, b, l, digits and ب here.

_WORD, _BOUND, _HAN = "abl148ب", "abl148", "你好"
_STANDS = {"1": "l", "4": "a", "8": "b"}
_ENDS, _CLAUSE = ".。", ","


def letters_and_gaps(text: str) -> tuple[str, list[str]]:
    """The letters, and what stands between each two of them."""
    letters = ""
    gaps: list[str] = []
    for char in text:
        if char in _WORD + _HAN:
            letters += char
            gaps.append("")
        else:
            gaps[-1] += char
    return letters, gaps[:-1]


def stand_for(letters: str, phrase: str) -> bool:
    """Whether they are the phrase's letters, or digits for no more than half of those of each word."""
    pairs = iter(letters)
    for word in re.findall(f"[{_WORD}]+|[{_HAN}]", phrase):
        stand = 0
        for letter in word:
            char = next(pairs)
            if char != letter and _STANDS.get(char) != letter:
                return False
            stand += char != letter
        if stand > len([letter for letter in word if not letter.isdigit()]) / 2:
            return False
    return True


def spelt_otherwise(written: str, phrase: str) -> bool:
    """Whether it is the phrase, apart or with digits, where @ is a separator, or the letter for which 4 stands too."""
    readings = {written, written.replace("@", "4")}
    return written != phrase and any(spelt(reading, phrase) for reading in readings)


def spelt(written: str, phrase: str) -> bool:
    letters, gaps = letters_and_gaps(written)
    own, between = letters_and_gaps(phrase)
    if len(letters) != len(own) or not stand_for(letters, phrase) or any(end in phrase for end in _ENDS + "\n"):
        return False
    if len(phrase) == 2 and all(char in _WORD for char in phrase):
        return False
    for gap, kept in zip(gaps, between, strict=True):
        fits = len(gap) <= 2 and not any(end in gap for end in _ENDS) and gap != "\n\n"
        if not fits or (kept and not gap) or ("\n" in gap and not any(char in " \n" for char in kept)):
            return False
    word: set[bool] = set()
    for number, (gap, kept) in enumerate(zip(gaps, between, strict=True)):
        if kept or any(char in _HAN for char in own[number : number + 2]):
            word = set()
        else:
            word.add(bool(gap))
            if len(word) == 2:
                return False
    there = [gap for gap in gaps if gap]
    return len(there) != 1 or _CLAUSE not in there[0]


def all_otherwise(phrase: str, text: str) -> Iterator[Span]:
    """Where a phrase is spelt otherwise, if its word has ended at the end of the text."""
    if not all(phrase[edge] in _WORD + _HAN for edge in (0, -1)):
        return
    for start, end in combinations(range(len(text) + 1), 2):
        edges = all(text[edge] in _WORD + _HAN for edge in (start, end - 1))
        if edges and spelt_otherwise(text[start:end], phrase) and bounded(phrase, text, start, end, _WORD):
            yield start, end


def bounded(phrase: str, text: str, start: int, end: int, word: str = _BOUND) -> bool:
    """Whether no character of a word stands beside one."""
    inside = [
        start and text[start - 1] in word and phrase[0] in word,
        text[end : end + 1] in [*word] and phrase[-1] in word,
    ]
    return not any(inside)


def all_exact(phrase: str, text: str, *, whole_words: bool) -> Iterator[Span]:
    for start in range(len(text)):
        end = start + len(phrase)
        if text.startswith(phrase, start) and (not whole_words or bounded(phrase, text, start, end)):
            yield start, end


def by_force(words: Iterable[str], text: str, *, whole_words: bool) -> list[Span]:
    return sorted(
        span
        for phrase in set(words)
        for span in (*all_exact(phrase, text, whole_words=whole_words), *all_otherwise(phrase, text))
    )


ALPHABET = "aabl148@你好 -\n.,ب"
DIGITS = str.maketrans("abl", "481")
WORDS = st.lists(
    st.one_of(
        st.text(ALPHABET, min_size=1, max_size=5).map(str.strip).filter(bool),
        st.sampled_from(
            (
                "a b",
                "ab 1a",
                "a1 你b",
                "你-好",
                "aa ba b1",
                "b1ab",
                "你好你",
                "ab-a",
                "a, b",
                "ab你",
                "ab 你",
                "all",
                "lab-all",
            )
        ),
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def texts(draw: st.DrawFn, words: Sequence[str]) -> str:
    """A text in which some phrases stand, apart and with digits for letters."""
    text = ""
    for _ in range(draw(st.integers(1, 3))):
        text += draw(st.text(ALPHABET, max_size=3))
        gap = draw(st.sampled_from(("", " ", " ", "-", ", ", ",", "\n", "--", "   ", ".")))
        often = draw(st.sampled_from((0, 1, 1, 2)))
        changed = draw(st.sampled_from((0, 0, 1, 2)))
        for char in draw(st.sampled_from(words)):
            digit = char.translate(DIGITS)
            text += draw(st.sampled_from((digit, digit, "@"))) if draw(st.integers(1, 3)) <= changed else char
            if often and (often == 1 or draw(st.booleans())):
                text += gap
    return text


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], str, list[int]]:
    words = draw(WORDS)
    text = draw(texts(words))
    cuts = draw(st.one_of(st.just(list(range(len(text)))), st.lists(st.integers(0, len(text)), max_size=6)))
    return words, text, cuts


@given(cases(), st.booleans())
@example((["b1ab"], "x b 1 a b", []), False)
@example((["ab 1a"], "ab-1ab", []), False)
@example((["all"], "4ll", []), True)
@example((["lab"], "l@b l-4-b 14b 148 11b @l@b", []), False)
@example((["a@b", "aab", "a4b"], "a@b a-4-b a-@-b", []), False)
def test_a_look_is_a_search_by_force(case: tuple[list[str], str, list[int]], whole_words: bool) -> None:
    """What stands in a text as it is or spelt otherwise is found, each once for each phrase, and nothing else."""
    words, text, _ = case
    assert by_force(words, text, whole_words=whole_words) == spans(
        phrases(words, whole_words=whole_words).hits(text, "", "")
    )


@given(cases(), st.booleans(), st.sampled_from(["", "。天", "…2天", "\n".join(map(chr, range(0x2500, 0x2520)))]))
@example((["b1ab"], "x b 1 a b", []), False, "天")
def test_a_quick_look_misses_nothing(case: tuple[list[str], str, list[int]], whole_words: bool, more: str) -> None:
    """A text that is there as a whole, of whatever script and with however many separators."""
    words, text, _ = case
    lexicon = phrases(words, whole_words=whole_words)
    assert lexicon.hits(text + more, "", "") == lexicon.whole(text + more)


def test_a_clean_text_is_not_read_for_what_is_spelt_apart() -> None:
    """Nor is one in which a phrase would meet across too many separators, unless its letters stand there."""
    with patch.object(Phrases, "hits") as hits:
        assert not phrases(["敏感词"]).whole("今天天气很好,我们去公园散步。12 个ai模型!\n- 敏。感")
        hits.assert_not_called()
        phrases(["敏感词"]).whole("敏。。。感,词")
        hits.assert_called_once()


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]


@given(cases(), st.booleans())
@example((["labba"], "l@bb4 14bb4", [*range(11)]), True)
@example((["all"], "4ll", [1]), True)
def test_a_text_that_comes_is_the_text_that_is_there(case: tuple[list[str], str, list[int]], whole_words: bool) -> None:
    """A scanner finds over a text, whole, cut or character by character, what one look at it finds."""
    words, text, cuts = case
    lexicon = phrases(words, whole_words=whole_words)
    scanner = PhraseScanner(lexicon)
    hits = [hit for piece in pieces(text, cuts) for hit in scanner.feed(piece)]
    assert spans(lexicon.hits(text, "", "")) == spans([*hits, *scanner.finish()])


@given(cases(), st.lists(st.booleans(), min_size=1, max_size=5), st.integers(1, 9), st.booleans())
def test_a_text_that_is_handed_over_as_it_was_written(
    case: tuple[list[str], str, list[int]], ends: list[bool], ways: int, whole_words: bool
) -> None:
    """It is read as its copy is, also when the way on is remembered, or was forgotten while somebody stood there."""
    words, text, cuts = case
    plain = phrases(words, whole_words=whole_words)
    remembering = phrases(words, whole_words=whole_words)
    with patch.object(module, "STEPS", ways * 3):
        for upper in (False, True, False):
            by_copy, handed = PhraseScanner(plain), PhraseScanner(remembering)
            for ended, piece in zip(cycle(ends), [*pieces(text, cuts), *pieces("\u200b" + text, cuts)], strict=False):
                written = piece.upper() if upper else piece
                hits = by_copy.feed(fold(written))
                if length := handed.take(written):
                    assert (0, len(fold(written))) == (len(hits), length)
                else:
                    assert hits == handed.feed(fold(written))
                assert by_copy.held == handed.held
                if ended and cuts:
                    assert by_copy.finish() == handed.finish()
            assert by_copy.finish() == handed.finish()


@given(cases(), st.booleans())
@example((["labba"], "l@bb4 14bb4", [*range(11)]), True)
@example((["all"], "4ll", [1]), True)
def test_nothing_of_a_hit_has_left(case: tuple[list[str], str, list[int]], whole_words: bool) -> None:
    """What was not held before a piece is in no hit that the piece brings; and it is told as soon as it is decided."""
    words, text, cuts = case
    scanner = PhraseScanner(phrases(words, whole_words=whole_words))
    came = ""
    free = 0
    told: list[Span] = []
    for piece in pieces(text, cuts):
        came += piece
        hits = scanner.feed(piece)
        assert all(hit.start >= free for hit in hits)
        told += spans(hits)
        # A word at the end may go on; what does not end there is decided.
        assert [span for span in by_force(words, came, whole_words=whole_words) if span[1] < len(came)] == sorted(
            span for span in told if span[1] < len(came)
        )
        assert free <= len(came) - scanner.held
        free = len(came) - scanner.held
    assert all(hit.start >= free for hit in scanner.finish())


class Written(NamedTuple):
    phrase: str
    text: str
    found: list[str]


@pytest.mark.parametrize(
    "case",
    [
        Written("敏感词", "敏*感*词，敏 感 词，敏--感词，敏感 词", ["敏*感*词", "敏 感 词", "敏--感词", "敏感 词"]),
        Written("敏感词", "敏 * 感词 敏。感词 敏\n感词 敏\u3000\n感词 敏  \n感词", []),
        Written("敏感词", "敏，感，词 敏、感·词 “敏”感词 敏（感）词", ["敏，感，词", "敏、感·词", "敏（感）词"]),
        Written("敏感", "很敏，感 敏（感 敏“感 敏：感 敏、感", []),
        Written("敏感", "敏_感 敏😀感 敏　感 敏\u200b*\u200b感", ["敏_感", "敏😀感", "敏　感", "敏\u200b*\u200b感"]),
        Written("ยาเสพ", "ขายย-าเสพติด", ["ย-าเสพ"]),
        Written("ぱんつ", "ぱ★ん★つ", ["ぱ★ん★つ"]),
        Written("fuck", "f u c k F-U-C-K ｆ＊ｕ＊ｃ＊ｋ f_u-c  k", ["f u c k", "F-U-C-K", "ｆ＊ｕ＊ｃ＊ｋ", "f_u-c  k"]),
        Written("fuck", "f uck fu ck fuc-k of u c k f u c kit f * u * c * k", []),
        Written("fuck", "x f u c k y, a-f-u-c-k", ["f u c k", "f-u-c-k"]),
        Written("aman", "a man aman", ["aman"]),
        Written("im", "I'm, i m, i-m, im", ["im"]),
        Written("bad apple", "bad apple bad-apple bad  apple bad\napple", ["bad apple", "bad-apple", "bad  apple", "bad\napple"]),
        Written("bad apple", "b a d a p p l e; b a d apple; bad a-p-p-l-e", ["b a d a p p l e", "b a d apple", "bad a-p-p-l-e"]),
        Written("bad apple", "badapple bad\n\napple bad, apple bad. apple ba d apple bad   apple bad apples", []),
        Written("self-harm", "self harm, self-harm, self\nharm, selfharm", ["self harm", "self-harm"]),
        Written("how to make a bomb", "How to m a k e a bomb, how-to-make-a-b*o*m*b", ["How to m a k e a bomb", "how-to-make-a-b*o*m*b"]),
        Written("plan b c", "plan-b-c plan b  c", ["plan-b-c", "plan b  c"]),
        Written("卖ice毒", "买卖 ice-毒品 卖i c e毒", ["卖 ice-毒", "卖i c e毒"]),
        Written("赤色,敏", "赤色,敏 赤-色 敏 赤色敏", ["赤色,敏", "赤-色 敏"]),
        Written("x.y", "x.y x y x. y", ["x.y"]),
        Written("c++", "c++ c + +", ["c++"]),
        Written("***", "*** * * *", ["***"]),
        Written("سلاح", "س ل ا ح", ["س ل ا ح"]),
        Written("마약", "엄마 약속 마약을", ["마약"]),
        Written("की", "क-ी", []),
        Written("porn", "p0rn P0RN ｐ０ｒｎ p-0-r-n p 0 r n pörn p٠rn", ["p0rn", "P0RN", "p0rn", "p-0-r-n", "p 0 r n", "porn", "p0rn"]),
        Written("porn", "xp0rn p0rns 1p0rn p0rn2 p0-rn prn p9rn", []),
        Written("girls", "gir1s g1rls g1r1s g1r15 61rls", ["gir1s", "g1rls", "g1r1s"]),
        Written("cocaine", "c0ca1n3 c0c41n3 c0c41ne c@c@ine", ["c0ca1n3", "c0c41ne"]),
        Written("cocaine", "coc@1ne c-0-c-@-i-n-e coc@@ine", ["coc@1ne", "c-0-c-@-i-n-e"]),
        Written("assets", "a55ets a$$ets as$ets 4ss3ts a$sets", ["a55ets", "a$$ets", "as$ets", "4ss3ts", "a$sets"]),
        Written("battle", "8a77le 8attle b4ttl3 b47t13", ["8a77le", "8attle", "b4ttl3"]),
        Written("sex", "$ex se$ s3x 53x $ s3x", ["s3x", "s3x"]),
        Written("ass", "a55 @ss as$ $as$ a$s 455 4ss", ["a$s", "4ss"]),
        Written("sos", "50s 5o5 s0s", ["s0s"]),
        Written("fall", "fa11 fail fai1 fal1", ["fa11", "fal1"]),
        Written("kill list", "k1ll 1ist, k1ll-1-1-s-t kill 1157", ["k1ll 1ist", "k1ll-1-1-s-t"]),
        Written("bad apple", "b4d apple b4d-4pple b 4 d a p p 1 e", ["b4d apple", "b4d-4pple", "b 4 d a p p 1 e"]),
        Written("卖ice毒", "卖1ce毒 卖i-c-3毒", ["卖1ce毒", "卖i-c-3毒"]),
        Written("covid19", "c0vid19 covid-19 covidl9 covidi9 c-o-v-1-d-1-9", ["c0vid19", "c-o-v-1-d-1-9"]),
        Written("b52", "852 b52 b-5-2", ["b52", "b-5-2"]),
        Written("im", "1m", []),
        Written("f@ck", "f@ck f4ck fack f@c-k f-@-c-k", ["f@ck", "f@c-k"]),
        Written("fuck", "f@u@c@k f$u$c$k", ["f@u@c@k", "f$u$c$k"]),
    ],
    ids=lambda case: f"{case.phrase} in {case.text}",
)  # fmt: skip
def test_ways_to_write(case: Written) -> None:
    """Each class of gaps: what is found, and what is not."""
    phrase = fold(case.phrase)
    text = fold(case.text)
    lexicon = phrases([phrase])
    found = lexicon.hits(text, "", "")
    for more in ("", "。天"):
        assert lexicon.hits(text + more, "", "") == lexicon.whole(text + more)
    assert [fold(written) for written in case.found] == [text[hit.start : hit.end] for hit in sorted(found)]


def test_many_words() -> None:
    """A phrase of many words is found as it is written or with all its letters apart; the number of readings stays small."""
    phrase = " ".join(["bad"] * 12)
    lexicon = phrases([phrase])
    for text in (phrase, phrase.replace(" ", "\n"), " ".join(phrase.replace(" ", ""))):
        assert [(0, len(text))] == spans(lexicon.hits(text, "", ""))


class Held(NamedTuple):
    phrase: str
    text: str
    held: str


@pytest.mark.parametrize(
    "case",
    [
        Held("敏感词", "很敏", "敏"),
        Held("敏感词", "很敏 ", "敏 "),
        Held("敏感词", "很敏，", "敏,"),
        Held("敏感词", "很敏--", "敏--"),
        Held("敏感词", "很敏---", ""),
        Held("敏感词", "很敏。", ""),
        Held("敏感词", "很敏*感 ", "敏*感 "),
        Held("敏感词", "很敏 不", ""),
        Held("fuck", "of", ""),
        Held("fuck", "of f", "f"),
        Held("fuck", "f u ", "f u "),
        Held("fuck", "x f u c", "f u c"),
        Held("fuck", "fuc ", ""),
        Held("fuck", "f u c k", "f u c k"),
        Held("bad apple", "a bad", "bad"),
        Held("bad apple", "a bad-", "bad-"),
        Held("bad apple", "a bad-a p", "bad-a p"),
        Held("bad-apple", "a bad ap", "bad ap"),
        Held("bad你", "bad ", "bad "),
        Held("bad你", "bad x", ""),
        Held("porn", "in p0", "p0"),
        Held("porn", "in p-0-", "p-0-"),
        Held("porn", "in xp0", ""),
        Held("porn", "in p00", ""),
        Held("list", "in 1", "1"),
        Held("list", "in 1is", "1is"),
        Held("list", "in 13", ""),
        Held("fail", "in fal", ""),
        Held("casino", "a c@", "c@"),
        Held("casino", "a c@s1", "c@s1"),
        Held("casino", "a c@s@", ""),
        Held("ass", "cost $", ""),
        Held("list", "第1", "1"),
        Held("porn", "2024", ""),
    ],
    ids=lambda case: f"{case.phrase} in {case.text}",
)
def test_what_is_held(case: Held) -> None:
    """The tail that may become a phrase, with the gap at its end; and no more."""
    text = fold(case.text)
    scanner = PhraseScanner(phrases([case.phrase]))
    scanner.feed(text)
    assert case.held == text[len(text) - scanner.held :]
