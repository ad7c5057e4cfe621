"""Make `relay/pure/fold_table.json`, the table that `relay.pure.fold` reads: `python .ci/fold_table.py`.

What a character's copy is, is decided here and nowhere else; at run time there is only a dict. Each character takes the
first step of `_step` that changes it, and so does each character of the result, until none changes: the table is a
fixed point by construction. No step looks at a neighbour, so the copy of a prefix is a prefix of the copy.

Not in the table, since `relay.pure.fold` computes them: ASCII, the halves of surrogate pairs, and the Hangul syllables
(11,172 of them, by the arithmetic of The Unicode Standard, section 3.12).

Run it again when one of its sources moves on: Python's `unicodedata` (the table records its version), or
    opencc                   traditional → simplified characters         Apache-2.0 (Open Chinese Convert)
    confusable-homoglyphs    the data of UTS 39's confusables.txt        MIT; the data: Unicode-3.0 (Unicode, Inc.)
Both are needed only here. The table they give is data under those licences; its "notice" says so.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Final

import opencc

TABLE: Final = Path(__file__).parent.parent / "relay" / "pure" / "fold_table.json"

NOTICE: Final = [
    "Made by .ci/fold_table.py. Do not edit.",
    "Case, decompositions, categories and confusables: Unicode Character Database and UTS 39,"
    " (c) Unicode, Inc., Unicode-3.0, https://www.unicode.org/license.txt (confusables by way of confusable-homoglyphs, MIT).",
    "Traditional to simplified characters: Open Chinese Convert (OpenCC), Apache-2.0, https://github.com/BYVoid/OpenCC.",
]

HANGUL: Final = range(0xAC00, 0xD7A4)
SURROGATES: Final = range(0xD800, 0xE000)
RADICALS_SUPPLEMENT: Final = range(0x2E80, 0x2F00)

# Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 15.1), which `unicodedata` does not know. The property
# is stable where it reaches unassigned code points: they are kept for more of the same.
DEFAULT_IGNORABLE: Final = (
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
)
_IGNORABLE: Final = frozenset(map(chr, DEFAULT_IGNORABLE))

# Letters that Unicode names but does not decompose, and the generators of "fancy text" are fond of: ʙ 🅑 🅱.
_STYLED: Final = re.compile(r"(?:LATIN LETTER SMALL CAPITAL|NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER) ([A-Z])")


def copy_of(text: str) -> str:
    """The copy of `text`: one character after the other, each till no step changes it."""
    return "".join(map(_copy, text))


@cache
def _copy(char: str) -> str:
    step = _step(char)
    return char if step == char else copy_of(step)


def _step(char: str) -> str:
    """The first change that applies to `char`, or `char` itself."""
    if char.isascii():
        return "" if _is_control(char) else char.lower()
    if ord(char) in SURROGATES:
        return "\ufffd"
    category = unicodedata.category(char)
    if category in {"Mn", "Me", "Cf", "Cc"} or char in _IGNORABLE:
        return ""
    if category == "Zs" or char == "\u2800":  # the blank braille pattern is a space in all but name
        return " "
    if category in {"Zl", "Zp"}:
        return "\n"
    changed = unicodedata.normalize("NFKD", char).casefold()
    if changed != char:
        return changed
    if _is_han(char):
        return _simplified().get(char, char)
    return _lookalike(char) or char


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc" and char not in "\t\n\r"


def _is_han(char: str) -> bool:
    """A Chinese character, 々 and 〇 among them, which no lookalike may replace."""
    return unicodedata.name(char, "").startswith(("CJK UNIFIED IDEOGRAPH", "IDEOGRAPHIC", "HANGZHOU NUMERAL"))


@cache
def _simplified() -> dict[str, str]:
    """Each Chinese character that OpenCC simplifies, with its first choice. The line ends keep its phrases out."""
    han = [char for char in map(chr, _code_points()) if unicodedata.name(char, "").startswith("CJK UNIFIED IDEOGRAPH")]
    simplified = opencc.OpenCC("t2s").convert("\n".join(han)).split("\n")
    return {char: simple for char, simple in zip(han, simplified, strict=True) if simple != char}


def _lookalike(char: str) -> str | None:
    """The ASCII letter or digit that `char` passes for; for a radical of the supplement, the character it passes for.

    A digit is its value before it is anything else: UTS 39 takes ٥ (five) for an "o". A small letter that has no
    lookalike takes its capital's, for the copy has no case: В passes for B, so в must go with it, or the capital would
    be let go, or "Вор" and "вор" would be two words.
    """
    if ord(char) in RADICALS_SUPPLEMENT:
        han = [other for other in _confusables(char) if len(other) == 1 and _is_han(other)]
        return han[0] if len(han) == 1 else None
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    return _prototype(char) or _capitals_prototype(char) or _styled(char)


def _prototype(char: str) -> str | None:
    """UTS 39's prototype of `char`, if an ASCII letter or digit is all that is left of it without its marks.

    Right-to-left letters have none: a row of them runs the other way, so they spell no Latin word, and Arabic and
    Hebrew prose is full of "l" and "o".
    """
    if unicodedata.bidirectional(char) in {"R", "AL"}:
        return None
    # The package lists a pair under both of its characters. ASCII letters and digits are always the prototype (but for
    # 0, 1, I and m, whose prototypes are ASCII), and so are strings. A letter with marks is one only for Latin letters,
    # as in decompositions: ł is l, but ¥ is no y, and θ (by way of O̵) no o.
    for other in _confusables(char):
        if other.isascii() or (len(other) > 1 and unicodedata.name(char, "").startswith("LATIN")):
            copy = copy_of(other)
            if len(copy) == 1 and copy.isascii() and copy.isalnum():
                return copy
    return None


def _capitals_prototype(char: str) -> str | None:
    capital = char.upper()
    return _prototype(capital) if capital != char and capital.casefold() == char else None


def _styled(char: str) -> str | None:
    named = _STYLED.fullmatch(unicodedata.name(char, ""))
    return named[1].lower() if named else None


def _confusables(char: str) -> list[str]:
    return _confusable_pairs().get(char, [])


@cache
def _confusable_pairs() -> dict[str, list[str]]:
    text = resources.files("confusable_homoglyphs").joinpath("confusables.json").read_text("utf-8")
    # It takes right-to-left characters together with the marks that set them apart in confusables.txt: left out here.
    return {
        char: [pair["c"] for pair in pairs if "\u200e" not in pair["c"]] for char, pairs in json.loads(text).items()
    }


def build() -> dict[str, object]:
    """The table as it stands in the file. What folds to one or several characters has a row for each 256 code points."""
    copies = {char: _copy(char) for char in map(chr, _code_points()) if _copy(char) != char}
    single = {char: copy for char, copy in copies.items() if len(copy) == 1}
    return {
        "notice": NOTICE,
        "sources": {
            "unicodedata": unicodedata.unidata_version,
            "opencc": metadata.version("opencc"),
            "confusable-homoglyphs": metadata.version("confusable-homoglyphs"),
        },
        "nothing": [[ord(first), ord(last)] for first, last in _ranges(c for c, copy in copies.items() if not copy)],
        "single": [["".join(row), "".join(single[char] for char in row)] for row in _rows(single)],
        "several": [{char: copies[char] for char in row} for row in _rows(c for c in copies if len(copies[c]) > 1)],
    }


def _code_points() -> Iterator[int]:
    """Every code point whose copy stands in the table, if it has one."""
    return (c for c in range(0x80, sys.maxunicode + 1) if c not in HANGUL and c not in SURROGATES)


def _ranges(chars: Iterable[str]) -> list[tuple[str, str]]:
    """Ascending characters as (first, last) of each row without a gap."""
    ranges: list[tuple[str, str]] = []
    for char in chars:
        if ranges and ord(ranges[-1][1]) + 1 == ord(char):
            ranges[-1] = ranges[-1][0], char
        else:
            ranges.append((char, char))
    return ranges


def _rows(chars: Iterable[str]) -> list[list[str]]:
    """Ascending characters, by the 256 code points to which they belong."""
    rows: dict[int, list[str]] = {}
    for char in chars:
        rows.setdefault(ord(char) >> 8, []).append(char)
    return list(rows.values())


def dump(table: dict[str, object]) -> str:
    """JSON with one row a line, in ASCII: a table of invisible and right-to-left characters is else no text to read."""
    fields = []
    for name, value in table.items():
        rows = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)
        fields.append(f'"{name}": [\n{rows}\n]' if isinstance(value, list) else f'"{name}": {rows}')
    return "{\n" + ",\n".join(fields) + "\n}\n"


if __name__ == "__main__":
    TABLE.write_text(dump(build()), encoding="ascii")
