"""How a phrase may be spelt: apart, or with digits for letters; and the second text in which such a phrase is found.

敏*感*词, f u c k, bad-apple: a *gap* is one or two separators (white space, punctuation, symbols; no sentence end, no empty
line) between two letters or digits. A phrase is also found

* with gaps between characters of scripts that write without spaces (Han, kana, Thai), each there or not;
* with gaps between all characters of a word of another script, or between none: "f u c k" but not "f uck". Each word of
  a phrase for itself: "b a d apple" is "bad apple";
* with any gap where the phrase has separators itself.

Letters of flags (🇸🇪🇽) are letters in this reading. And in a word of Latin letters digits may stand for some of them, and
@ and $ between letters: p0rn, p-0-r-n, c@sino. At least half of its letters are themselves: a55 is a telephone, 50s a time.

But prose puts separators between words, which may happen to be a phrase together. So a line end is a gap only where the
phrase has white space; one gap with a comma, colon, quote or bracket in it is not enough (敏，感，词 has two). A word of two
letters ("I'm", "i/o"), and a phrase that begins or ends with a separator or has a sentence end inside, is only found as
it is. @ and $ stand for no first or last letter: $ex is a name, US$ money.

`spells` says this and decides. But nobody can try 100,000 phrases at each place of a text. So a text is read a second
time with its gaps dropped, and the `readings` of phrases are what is looked for there. One gap stays: the single space
after a word of two letters or more and before another. It stands between most words of prose, and without it the second
text of an English reply would be full of what begins some phrase. How a gap is read depends on nothing behind the letter
after it, so the second text of a text that is still coming only grows.

If there are digits in it, the second text is a *skeleton*, in which what may stand for each other is one: o is written for
0, and 1 for i and l. Prose without digits is none, and is not burdened. A text with @ or $ is read a third time: what were
gaps are letters then.

All texts are canonical (`relay.pure.fold`).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Final

from relay.pure.window import SENTENCE_ENDS


def _of_categories(codes: Iterable[int], *categories: str) -> str:
    return "".join(char for char in map(chr, codes) if unicodedata.category(char) in categories)


# Thai, Lao; what decomposes into Han, kana and bopomofo and stands beside them; the planes of rare Han characters.
_UNSPACED: Final = "\u0e00-\u0eff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER: Final = r"[^\W_]"
_WORD: Final = rf"[^\W_{_UNSPACED}]"

# Marks that the fold keeps are the vowels of Indic scripts: they separate nothing.
_MARKS: Final = _of_categories(range(0x0900, 0x1D00), "Mc") + _of_categories(range(0xA800, 0xAC00), "Mc")
# What prose puts between words and clauses: commas, colons, quotes and brackets.
_CLAUSE: Final = frozenset(",:、\"'" + _of_categories(range(0x3100), "Ps", "Pe", "Pi", "Pf"))
_ENDS: Final = SENTENCE_ENDS.replace("\n", "") + _MARKS
# One separator or two, a letter before and another after. (Its first item is a set of characters, for which the engine
# skips ahead; what has to stand before is looked up behind.)
_OPEN: Final = rf"[\W_](?<={_LETTER}[^{_ENDS}])%s(?:[\W_](?<![{_ENDS}])(?<!\n\n))?"
_KEPT: Final = rf"(?!(?<={_WORD}{_WORD} ){_WORD})"
_AFTER_WORD: Final = re.compile(rf"(?<={_WORD}{_WORD})")
_WORD_ENDS: Final = re.compile(rf"(?<={_WORD}{_WORD})(?=[{_UNSPACED}])")
_DROPPED: Final = re.compile(_OPEN % _KEPT + rf"(?={_LETTER})")
_OPENED: Final = re.compile(_OPEN % "" + r"\Z")

_LETTERS: Final = re.compile(rf"({_LETTER})([\W_]*)")  # each with what stands behind it
_WORDS: Final = re.compile(rf"{_WORD}+")
_SPACE: Final = re.compile(r"\s")
_BETWEEN_WORDS: Final = re.compile(rf"(?<={_WORD}{_WORD})[\W_]+(?={_WORD})")
# Letters that stand for flags, two by two, or for themselves: 🇸 🇪 🇽.
_FLAGS: Final = {0x1F1E6 + number: letter for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
# What may stand for a letter. Not 6 and 9, which stand for b, g and q too rarely to make those one.
_STANDS: Final = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b"}
_DIGIT: Final = re.compile("[013-578]")
_FLAG: Final = re.compile("[\U0001f1e6-\U0001f1ff]")
# Where anything stands for a letter.
_OTHERS: Final = re.compile("[013-578@$\U0001f1e6-\U0001f1ff]")
# What is written for letters, or may be: a text with these is not only letters and gaps.
_SIGNS: Final = frozenset("@$" + "".join(map(chr, _FLAGS)))
# A text with more separators than this is quicker read with its gaps.
MAX_SEPARATORS: Final = 16
_SEPARATOR: Final = re.compile(r"[\W_]")
# In a skeleton. (Replaced one by one: `str.translate` raises and swallows an error for each Chinese character.)
_ONE: Final = (("0", "o"), ("i", "1"), ("l", "1"), ("3", "e"), ("4", "a"), ("5", "s"), ("7", "t"), ("8", "b"))
# @ is read as 4, and $ as 5.
_SIGNED: Final = re.compile(rf"{_LETTER}.*[@$].*{_LETTER}", re.DOTALL)
# Phrases that may be spelt otherwise.
_SPELT: Final = re.compile(rf"(?!{_WORD}{{2}}\Z){_LETTER}[^{_ENDS}\n]*{_LETTER}")
_PARTS: Final = re.compile(rf"{_WORD}+|{_LETTER}")
# Of a phrase of more words, all are looked for as they are, or all apart.
MAX_WORDS: Final = 5


def spaced(char: str) -> bool:
    """Whether it is a letter or digit of words that spaces set apart, of whatever script."""
    return _WORDS.fullmatch(char) is not None


def skeleton(text: str) -> str:
    """The text, with one character for those that may stand for each other. Its characters keep their places."""
    for char, one in _ONE:
        text = text.replace(char, one)
    return text


class Together:
    """A text without its gaps, and the way back.

    written: the text as it was, but for letters in other signs. text: what is left of it without gaps; its skeleton, if
    it has digits.
    """

    __slots__ = ("_gaps", "_signs", "text", "written")

    def __init__(self, written: str, *, digits: bool = False, signs: str | None = None) -> None:
        """`digits`: it may have some. signs: the text as it was, where @ and $ in it are letters."""
        self.written = written
        self._signs = signs
        self._gaps: tuple[list[int], list[int]] | None = None
        text = _DROPPED.sub("", written)
        self.text = skeleton(text) if digits and _DIGIT.search(text) else text

    @property
    def stem(self) -> str:
        """The same, but for its end: a gap there is nothing, or a space if a word of two letters or more stands before it;
        and of a text that ends with what no phrase goes across, nothing is left.
        """
        written, text = self.written, self.text
        opened = _opened(written)
        stem = text[: max(0, opened - (len(written) - len(text)))]
        return stem + " " if opened < len(written) and _AFTER_WORD.match(written, opened) else stem

    def place(self, index: int) -> int:
        """Where the character at `index` of `text` stands in the text as it was written."""
        if self._gaps is None:
            self._gaps = _gaps(self.written)
        ends, dropped = self._gaps
        return index + dropped[bisect_right(ends, index)]

    def spells(self, start: int, end: int, phrase: str) -> bool:
        """Whether the phrase is spelt there in this text, and in no other reading of it."""
        if self._signs is not None and _SIGNED.fullmatch(self._signs, start, end) is None:
            return False
        return spells(self.written[start:end], phrase)


def together(written: str) -> Sequence[Together]:
    """The text without its gaps, once or (with @ or $) twice; nothing if that is no other text."""
    if written.isalpha() or (written[1:].isalpha() and written[0] not in _STANDS):
        return ()  # most chunks: a separator at the beginning parts nothing
    if _OTHERS.search(written) is None:
        apart = Together(written)
        return () if apart.text == written and _opened(written) in (0, len(written)) else (apart,)
    if _FLAG.search(written) is not None:
        written = written.translate(_FLAGS)
    apart = Together(written, digits=True)
    if "@" in written or "$" in written:
        return apart, Together(written.replace("@", "4").replace("$", "5"), digits=True, signs=written)
    return (apart,)


def bare(written: str) -> str | None:
    """What is left of a text without any separator, as a skeleton if it has digits. None where it is not to be had so.

    Whatever phrase `together` has found, its letters stand here side by side, and these are a reading of it. So a text in
    which there is no reading need not be read a second time. It is a quick look for texts without spaces: the words of
    others would meet here, and some phrase would often stand across two of them.
    """
    if written.isascii():
        return None
    start = separators = 0
    while not written.isalnum() and (found := _SEPARATOR.search(written, start)) is not None:
        start = found.start()
        separator = written[start]
        separators += 1
        if separator in _SIGNS or separators > MAX_SEPARATORS:
            return None
        written = written.replace(separator, "")
    return written if written.isalpha() else skeleton(written)


def _gaps(written: str) -> tuple[list[int], list[int]]:
    """Where gaps were in the text without them, and how much is gone before each of them, and behind the last."""
    ends: list[int] = []
    dropped = [0]
    for gap in _DROPPED.finditer(written):
        start, end = gap.span()
        ends.append(start - dropped[-1])
        dropped.append(dropped[-1] + end - start)
    return ends, dropped


def _opened(written: str) -> int:
    """Where the gap at the end of a text begins, or the end; 0 if no phrase goes across what is there."""
    opened = len(written)
    if not written[-1:].isalnum():
        gap = None if written[-1:] in _ENDS else _OPENED.search(written, max(0, opened - 3))
        opened = gap.start() if gap is not None else 0
    return opened


def heads(reading: str, *, whole: bool) -> Iterator[str]:
    """What a text ends with, in `stem`, while it may become `reading`. `whole`: also when it is all there."""
    for length in range(1, len(reading) + whole):
        yield reading[:length]
    for border in _WORD_ENDS.finditer(reading):
        yield reading[: border.start()] + " "


def readings(phrase: str) -> set[str]:
    """What has to be looked for in texts without gaps; nothing if a phrase is only found as it is."""
    if _SPELT.fullmatch(phrase) is None:
        return set()
    parts = [re.sub(r"[\W_]+", "", part) for part in _BETWEEN_WORDS.split(phrase)]
    if len(parts) > MAX_WORDS:
        found = {"".join(parts), " ".join(parts)}
    else:
        found = {
            parts[0] + "".join(gap + part for gap, part in zip(gaps, parts[1:], strict=True))
            for gaps in product(("", " "), repeat=len(parts) - 1)
        }
    return found | {*map(skeleton, found)}


def spells(written: str, phrase: str) -> bool:
    """Whether `written`, from whose text without gaps a reading of `phrase` was taken, is the phrase spelt otherwise."""
    if _SPELT.fullmatch(phrase) is None:
        return False
    found = _LETTERS.findall(written)
    return _stand_for("".join(letter for letter, _ in found), phrase) and _are_gaps([gap for _, gap in found], phrase)


def _stand_for(letters: str, phrase: str) -> bool:
    """Whether the letters and digits of a text are those of the phrase, or stand for them."""
    start = 0
    for part in _PARTS.findall(phrase):
        said = letters[start : start + len(part)]
        start += len(part)
        if said != part:
            others = [(char, letter) for char, letter in zip(said, part, strict=True) if char != letter]
            if not all(letter in _STANDS.get(char, "") for char, letter in others):
                return False
            if 2 * len(others) > sum(map(str.isalpha, part)):
                return False
    return True


def _are_gaps(written: Sequence[str], phrase: str) -> bool:
    """Whether the phrase may have these gaps behind its letters, those of the phrase itself or others."""
    gaps = []
    apart: bool | None = None  # of the word in which we are, as far as it is known
    letters = _LETTERS.findall(phrase)
    for (letter, between), (following, _), gap in zip(letters, letters[1:], written, strict=False):
        if "\n" in gap and not _SPACE.search(between):
            return False
        if between and not gap:
            return False
        if between or not _WORDS.fullmatch(letter + following):
            apart = None
        elif apart is None:
            apart = gap != ""
        elif apart is not (gap != ""):
            return False
        if gap:
            gaps.append(gap)
    return len(gaps) != 1 or _CLAUSE.isdisjoint(gaps[0])
