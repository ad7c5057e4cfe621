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

# Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 15.1), which `unicodedata` does not know. The property
# is stable where it reaches unassigned code points: they are kept for more of the same.
DEFAULT_IGNORABLE: Final = (
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
)
# Symbols by category, of which nothing is drawn: the blank braille pattern, the null notehead.
BLANK: Final = (0x2800, 0x1D159)
_IGNORABLE: Final = frozenset(map(chr, (*DEFAULT_IGNORABLE, *BLANK)))

# Palochka and Latin iota are bars: UTS 39 takes their capitals for l, their small letters for i, and apple is spelt with a
# small palochka. So they are 1, which may stand for either (and is what those who write with a palochka type for it).
_BARS: Final = frozenset("\u04c0\u04cf\u0196\u0269")

# Letters that Unicode names after ASCII's but does not decompose: ƈ ʌ, and what the generators of "fancy text" are fond
# of, ʙ 🅑 🅱. What stands before and after the letter in the name says what was done to it.
_NAMED: Final = re.compile(
    r"(?:NEGATIVE (?:CIRCLED|SQUARED) )?LATIN (?:SMALL |CAPITAL )?LETTER((?: [A-Z]{2,})*) ([A-Z])( WITH .*)?"
)


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
    if category == "Zs":
        return " "
    if category in {"Zl", "Zp"}:
        return "\n"
    if char in _BARS:
        return "1"
    plain = unicodedata.normalize("NFKD", char).casefold()
    if re.fullmatch(r"\(\D+\)", plain):  # ⒜ ㈥ spell words; ⑴ stands before them
        plain = plain.strip("()")
    if plain.isascii():
        return plain
    if plain == char and _is_han(char):
        return _simplified().get(char) or _passes_for_han(char) or char
    own = _number(char) or _prototype(char)
    if plain != char:
        # UTS 39 has one prototype for I, l, 1 and |. Ι is I, since ι is i.
        return own if own and any(map(str.isalpha, plain)) and (own, copy_of(plain)) != ("l", "i") else plain
    return own or _capitals_prototype(char) or _named(char) or _passes_for_han(char) or char


@cache
def is_disguise(char: str) -> bool:
    """Whether the copy of `char` says more than another case, width, punctuation or accent: something was hidden in it.

    It was removed (a mark, a format character), or an ordinary letter or digit took the place of a fancy one (𝐛 ⓑ ᵇ ①)
    or of a lookalike. No disguise is what every reader reads: a traditional character, a Hangul syllable, é, ł, が.
    """
    copy = _copy(char)
    if not copy:
        return True
    if copy == char or not any(map(str.isalnum, copy)) or "HANGUL" in unicodedata.name(char, ""):
        return False
    kind, *parts = unicodedata.decomposition(char).split() or [""]
    if kind.startswith("<"):
        return kind not in {"<wide>", "<narrow>"}
    if kind and not parts:  # Unicode has it twice: K, 豈
        return True
    folded = unicodedata.normalize("NFKD", char).casefold()
    if folded != char:
        return any(is_disguise(part) for part in folded if _copy(part))
    return not _is_han(char) and not _is_stroked(char)


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


def _number(char: str) -> str | None:
    """A digit of any script, or a number in a circle, is its value before it is anything else.

    UTS 39 takes ٥ (five) for an "o", and ০ (zero) for another.
    """
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    return str(int(unicodedata.numeric(char))) if "CIRCLED NUMBER" in unicodedata.name(char, "") else None


def _prototype(char: str) -> str | None:
    """UTS 39's prototype of `char`, if an ASCII letter or digit is all that is left of it without its marks.

    Before its small letter: Ν passes for N, though ν passes for v. That a Greek word in capitals has another copy than
    in small letters is for word lists to know, which can have both.
    """
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
    """The prototype of its capital, for a small letter that has none itself.

    В passes for B, so в goes with it: or "Вор" and "вор" would be two words.
    """
    capital = char.upper()
    return _prototype(capital) if capital != char and capital.casefold() == char else None


def _passes_for_han(char: str) -> str | None:
    """The one Chinese character that `char` passes for, if there is one and `char` is none of today's itself.

    A radical may pass for any character; what is no radical for one of everyday only: ロ for 口, 値 for 值.
    """
    name = unicodedata.name(char, "")
    if "HANGUL" in name or char in _everyday() or (_is_han(char) and char not in _radicals() and _in_gb2312(char)):
        return None
    han = {_simplified().get(other, other) for other in _confusables(char) if len(other) == 1 and _is_han(other)}
    if not name.startswith("CJK RADICAL"):
        han &= _everyday()
    return han.pop() if len(han) == 1 else None


@cache
def _radicals() -> frozenset[str]:
    """The 214 radicals of the Kangxi dictionary, as characters."""
    return frozenset(unicodedata.normalize("NFKD", chr(code)) for code in range(0x2F00, 0x2FD6))


def _in_gb2312(char: str) -> bool:
    try:
        return bool(char.encode("gb2312"))
    except UnicodeEncodeError:
        return False


@cache
def _everyday() -> frozenset[str]:
    """The 3,755 characters of GB 2312's first level, that is what is read and written every day."""
    cells = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return frozenset("".join(cell.decode("gb2312", "ignore") for cell in cells))


def _named(char: str) -> str | None:
    name = _NAMED.fullmatch(unicodedata.name(char, ""))
    return name[2].lower() if name else None


def _is_stroked(char: str) -> bool:
    """Whether `char` is a letter with a stroke or hook, which is part of many alphabets and no lookalike: ł đ ƙ."""
    name = _NAMED.fullmatch(unicodedata.name(char, ""))
    looks = _confusables(char) + _confusables(char.upper())
    if name is None or name[1] or name[3] is None:
        return False
    return not any(other.isascii() and len(other) == 1 for other in looks)


def _confusables(char: str) -> list[str]:
    return _confusable_pairs().get(char, [])


@cache
def _confusable_pairs() -> dict[str, list[str]]:
    text = resources.files("confusable_homoglyphs").joinpath("confusables.json").read_text("utf-8")
    # It takes right-to-left characters together with the marks that set them apart in confusables.txt.
    return {
        char.strip("\u200e"): [pair["c"].strip("\u200e") for pair in pairs] for char, pairs in json.loads(text).items()
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
        "nothing": _ranges(char for char, copy in copies.items() if not copy),
        "disguises": _ranges(char for char, copy in copies.items() if copy and is_disguise(char)),
        "single": [["".join(row), "".join(single[char] for char in row)] for row in _rows(single)],
        "several": [{char: copies[char] for char in row} for row in _rows(c for c in copies if len(copies[c]) > 1)],
    }


def _code_points() -> Iterator[int]:
    """Every code point whose copy stands in the table, if it has one."""
    return (c for c in range(0x80, sys.maxunicode + 1) if c not in HANGUL and c not in SURROGATES)


def _ranges(chars: Iterable[str]) -> list[list[int]]:
    """Ascending characters as the code points [first, last] of each row without a gap."""
    ranges: list[list[int]] = []
    for code in map(ord, chars):
        if ranges and ranges[-1][1] + 1 == code:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
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
