"""The canonical copy of a text: what is moderated, and in whose characters everything is counted.

The copy is made character by character, through one table without context: compatibility decomposition (NFKD), case
folded, marks and format characters dropped, traditional characters simplified, lookalikes of ASCII letters and digits
and of common Chinese characters replaced by them. A character's copy is often one character, sometimes none (a
zero-width space) or several (`…`, a Hangul syllable, `ﷺ` with its 18). No context, so that

    fold(a + b) == fold(a) + fold(b)     for every cut, which NFKC and the simplification of phrases cannot say;
    fold(fold(text)) == fold(text).

The price: decomposed letters stay apart, marks are gone (`é` is `e`, `й` is `и`), a traditional character becomes its
most common simplified one whatever word it stands in. The copy is for comparing; nobody is shown it.

What nobody sees is dropped, tag characters (U+E0020 to U+E007E, invisible ASCII) among it: read as letters, one between
two letters would take a word apart that a reader sees whole. So a message hidden in them is not read here; a long one is
a row that `longest_nothing` measures. The letters of flags (🇸 🇪 🇽) stay symbols: next to a word they are no part of it.

The table is data, made by `.ci/fold_table.py`, which says what is folded to what and why. Here are only the table's
loading, its use, and the way back from a position in the copy to one in the text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Final

import orjson

# To whom a half of a surrogate pair belongs is for `relay.pure.escapes` to find out; what is left alone is no character.
_REPLACEMENT: Final = 0xFFFD
_SURROGATES: Final = range(0xD800, 0xE000)

# A syllable is a leading consonant, a vowel and perhaps a trailing consonant (The Unicode Standard, section 3.12).
_HANGUL: Final = range(0xAC00, 0xD7A4)
_LEADS, _VOWELS, _TRAILS = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)

# `str.translate` raises and swallows a KeyError for each character that its dict lacks: a third of the time of a Chinese
# chunk. So the characters of most replies stand in it even where they are their own copies.
_COMMON: Final = (range(0x20, 0x7F), range(0x3000, 0x3100), range(0x4E00, 0xA000))

# ASCII is folded as bytes, 256 of them: `bytes.translate` looks nothing up.
_ASCII_LOWER: Final = bytes(range(256)).lower()
_ASCII_NOTHING: Final = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})

# Models speak in tokens of a few characters, and in the same ones again and again: their copies are remembered.
TOKEN_CHARS: Final = 8
TOKENS: Final = 16_384

# In prose little changes, and much of that is the same punctuation: what changes is replaced, one by one. Where so many
# different ones stand among the first characters that it is another kind of text, or twice as many in all, the dict is
# quicker.
PROSE_CHARS: Final = 64
FEW: Final = 8


def _load() -> tuple[dict[int, int | str], frozenset[str], frozenset[str]]:
    """The dict for `str.translate`, the characters whose copy is empty, and all that are disguises."""
    table = orjson.loads(Path(__file__).with_name("fold_table.json").read_bytes())
    copies: dict[int, int | str] = {code: code for codes in _COMMON for code in codes}
    copies.update(dict.fromkeys(_SURROGATES, _REPLACEMENT))
    trails = ["", *map(chr, _TRAILS)]
    copies.update(zip(_HANGUL, map("".join, product(map(chr, _LEADS), map(chr, _VOWELS), trails)), strict=True))
    copies.update(str.maketrans(*map("".join, zip(*table["single"], strict=True))))
    for several in table["several"]:
        copies.update(str.maketrans(several))
    nothing = {*_ASCII_NOTHING, *_codes(table["nothing"])}
    copies.update(dict.fromkeys(nothing, ""))
    copies.update(zip(range(0x41, 0x5B), range(0x61, 0x7B), strict=True))  # A-Z
    return copies, frozenset(map(chr, nothing)), frozenset(map(chr, nothing.union(_codes(table["disguises"]))))


def _codes(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    return chain.from_iterable(range(first, last + 1) for first, last in ranges)


_COPIES, NOTHING, DISGUISES = _load()


def _suspects(points: Iterable[int]) -> re.Pattern[str]:
    """Those of the Basic Multilingual Plane, and every character beyond it.

    As the others' complement: `re` looks into one bitmap, and is through with a character that stands there.
    """
    codes = sorted({-1, *(code for code in points if code <= 0xFFFF), 0x10000})
    # In ranges: of thousands of characters one by one `re` takes three times as long to make it.
    between = [(chr(before + 1), chr(after - 1)) for before, after in pairwise(codes) if after - before > 1]
    ranges = "".join(f"{re.escape(first)}-{re.escape(last)}" for first, last in between)
    return re.compile(f"[^{ranges}]")


def _finder(chars: frozenset[str]) -> Callable[[str], bool]:
    """Says whether any of `chars` stands in a text: 0.5 µs for 100 that do not, 2 µs with an emoji among them."""
    suspect = _suspects(map(ord, chars)).search

    def find(text: str) -> bool:
        first = suspect(text)
        return first is not None and not chars.isdisjoint(text[first.start() :])

    return find


_changing: Final = _suspects(code for code, copy in _COPIES.items() if copy != code).search
_has_disguise: Final = _finder(DISGUISES)
_has_uneven: Final = _finder(
    frozenset(chr(code) for code, copy in _COPIES.items() if isinstance(copy, str) and len(copy) != 1)
)


def _fold(text: str) -> str:
    if text.isascii():
        if text.isprintable():
            return text.lower()
        return text.encode().translate(_ASCII_LOWER, _ASCII_NOTHING).decode()
    if len(text) > PROSE_CHARS and (prose := _prose(text)) is not None:
        return prose[0]
    return text.translate(_COPIES)


def _prose(text: str) -> tuple[str, bool] | None:
    """The copy of a text in which few characters change, and whether each of them has one; None if many do."""
    changes, seen = 0, True
    found = _changing(text)
    while found is not None:
        start = found.start()
        changes += 1
        if changes > (FEW if start < PROSE_CHARS else 2 * FEW):
            return None
        char = text[start]
        copy = _COPIES.get(ord(char), char)
        if copy == char:  # beyond the Basic Multilingual Plane
            start += 1
        elif isinstance(copy, int):
            text = text.replace(char, chr(copy))
        else:
            text = text.replace(char, copy)  # no copy holds what has another copy, so nothing is replaced again
            seen = seen and copy != ""
        found = _changing(text, start)
    return text, seen


class _Tokens(dict[str, str]):
    """Texts and their copies. Short ones stay, until they are too many."""

    def __missing__(self, text: str) -> str:
        copy = _fold(text)
        if len(text) <= TOKEN_CHARS:
            if len(self) >= TOKENS:
                self.clear()
            self[text] = copy
        return copy


# A method written in C: a text that is remembered costs no call of Python.
fold: Final = _Tokens().__getitem__
"""The canonical copy of a text."""


def fold_seen(text: str, most: int) -> str | None:
    """The copy of a text; None if more than `most` of its characters in a row fold to nothing."""
    prose = None if text.isascii() else _prose(text)
    copy, seen = prose if prose is not None else (_fold(text), False)
    return copy if seen or longest_nothing(text) <= most else None


def disguised(text: str) -> bool:
    """Whether the copy of `text` says more than another case, width, punctuation or accent: what else was hidden there.

    True for what the copy is without (marks, zero-width and control characters, so the selector of an emoji too), and for
    fancy letters and lookalikes. Of a text that is not disguised, a reader of the text itself reads what the copy says.
    """
    if text.isascii() and text.isprintable():
        return False
    return _has_disguise(text)


def is_even(text: str) -> bool:
    """Whether each character of `text` has a copy of exactly one character, so that positions in both are the same."""
    if text.isascii():
        return text.isprintable() or len(text.encode().translate(None, _ASCII_NOTHING)) == len(text)
    return not _has_uneven(text)


def trailing_nothing(text: str) -> int:
    """How many characters at the end of `text` fold to nothing."""
    row = 0
    for char in reversed(text):
        if char not in NOTHING:
            break
        row += 1
    return row


def longest_nothing(text: str, before: int = 0) -> int:
    """The longest row of characters that fold to nothing, of which `before` stood directly before `text`."""
    if is_even(text):
        return before
    longest = row = before
    for char in text:
        if char in NOTHING:
            row += 1
            longest = max(longest, row)
        else:
            row = 0
    return longest


def original_length(text: str, canonical: int, *, ended: bool = False) -> int:
    """How many characters of `text` lie wholly before position `canonical` of its copy.

    A character that folds to nothing belongs to the next one that does not: what hides before a letter leaves with it.
    Those at the very end belong to a letter yet to come, unless the text has `ended`: then they go with the whole copy.
    """
    if is_even(text):
        return max(0, min(canonical, len(text)))
    complete = end = 0
    for length, char in enumerate(text, 1):
        copy = _COPIES.get(ord(char), char)
        width = 1 if isinstance(copy, int) else len(copy)
        end += width
        if end > canonical:
            return complete
        if width:
            complete = length
    return len(text) if ended else complete
