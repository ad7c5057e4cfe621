"""The canonical copy: what it promises for all of Unicode, what it does to each class of characters, and the way back."""

import importlib.util
import json
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure import fold as module
from relay.pure.fold import (
    DISGUISES,
    NOTHING,
    PROSE_CHARS,
    disguised,
    fold,
    fold_seen,
    is_even,
    longest_nothing,
    original_length,
    trailing_nothing,
)

TABLE = Path(module.__file__).with_name("fold_table.json")
GENERATOR = Path(__file__).parents[2] / ".ci" / "fold_table.py"

COPIES = {char: fold(char) for char in map(chr, range(sys.maxunicode + 1))}
BMP = [*COPIES][:0x10000]

# All of Unicode, halves of surrogate pairs too, and often what folds to nothing or to several characters.
CHARS = st.one_of(
    st.integers(0, sys.maxunicode).map(chr),
    st.sampled_from("aB \n\x00你國，…ﷺ한①éА\u200b\u0301\ufe0f\U000e0041\u00ad\ud83d\ude00"),
)
# And texts of the plain characters that the way back counts without looking at each.
TEXTS = st.one_of(st.lists(CHARS, max_size=40).map("".join), st.text("aB \n0你国，。“ー", max_size=40))


@given(TEXTS, st.lists(st.integers(0, 40)))
def test_the_copy_of_the_pieces_is_the_copy_of_the_whole(text: str, cuts: list[int]) -> None:
    """However a text is cut, the copies of its pieces joined are the copy of the text."""
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    assert fold(text) == "".join(fold(text[start:end]) for start, end in pairwise(borders))


def test_the_copy_of_a_copy_is_that_copy() -> None:
    """Folding once is enough, for every code point."""
    assert [] == [char for char, copy in COPIES.items() if fold(copy) != copy]


def test_a_copy_holds_no_capital_no_control_and_no_half_pair() -> None:
    """What the copy of any code point is free of."""
    copies = set("".join(COPIES.values()))
    assert set() == copies.intersection("ABCDEFGHIJKLMNOPQRSTUVWXYZ", NOTHING)
    assert {"\t", "\n", "\r"} == {char for char in copies if unicodedata.category(char) == "Cc"}
    assert {" "} == {char for char in copies if unicodedata.category(char) == "Zs"}
    assert set() == {char for char in copies if unicodedata.category(char) == "Cs"}


def test_nothing_is_what_has_an_empty_copy() -> None:
    """`NOTHING` is the set of all characters whose copy is empty, and holds no more."""
    assert NOTHING == {char for char, copy in COPIES.items() if not copy}


def test_ascii_only_loses_case_and_control_characters() -> None:
    """No ASCII character has a lookalike: 0 stays 0, 1 stays 1, | stays |; \\t \\n \\r stay too."""
    kept = {*range(0x20, 0x7F), *b"\t\n\r"}
    for code in range(0x80):
        expected = chr(code).lower() if code in kept else ""
        assert expected == fold(chr(code))
        assert "你" + expected == fold("你" + chr(code))  # the same by the other way


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        pytest.param("ＡＢＣ１２３，！？；：～", "abc123,!?;:~", id="fullwidth"),
        pytest.param("ｷﾞﾝｻﾞ", "キンサ", id="halfwidth"),
        pytest.param("敏\u200b感\u200c\u200d词\u2060\ufeff", "敏感词", id="zero width"),
        pytest.param("\u202eab\u202c\u2066cd\u2069\u200e\u200f\u061c", "abcd", id="bidi"),
        pytest.param("a\U000e0001\U000e0062\U000e007fb", "ab", id="tags"),
        pytest.param("✌\ufe0e✌\ufe0f葛\U000e0100\u180bx", "✌✌葛x", id="variation selectors"),
        pytest.param("p\u0301o\u0336r\u20ddn\u0489", "porn", id="combining"),
        pytest.param("éàçñüåžİ", "eacnuazi", id="precomposed"),
        pytest.param("øłđħŧ", "oldht", id="stroke letters"),
        pytest.param("ƈɋⱥȿ ɐʌǝʇ ɛɔ ꞃꞇ", "cqas avet eo rt", id="named after letters"),
        pytest.param("ⓟⓄⓡⓃ①⑳", "porn120", id="circled"),
        pytest.param("⒜🄐㈥⑴⒈", "aa六(1)1.", id="parenthesised"),
        pytest.param("⓫❿㉈", "111010", id="numbers in circles"),
        pytest.param("🄿🅾🆁🅝❶➀⓿", "porn110", id="squared and negative"),
        pytest.param("𝐩𝑶𝓻𝔫𝕩𝖄𝚣𝟎𝟙𝟿", "pornxyz019", id="mathematical"),
        pytest.param("ᴘᴏʀɴ ʙᴍᴛ", "porn bmt", id="small capitals"),
        pytest.param("ⁿªºₓ²³", "naox23", id="superscripts and subscripts"),
        pytest.param("раураl ВОМВ ТЕХТ һіј", "paypal bomb text hij", id="cyrillic"),
        pytest.param("аррӏе Ӏ Ɩ ɩ", "app1e 1 1 1", id="bars"),
        pytest.param("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ αρο ν ϲ", "abezhikmnoptyx apo v c", id="greek"),
        pytest.param("ו ן ס ا ه ہ", "l l o l o o", id="right to left"),
        pytest.param("١٢٣ ۴۵ ०१ ๙", "123 45 01 9", id="digits by their value"),
        pytest.param("國語敏感詞發髮後", "国语敏感词发发后", id="traditional"),
        pytest.param("⼈⼝⽇⻢⺅", "人口日马亻", id="radicals"),
        pytest.param("エロ ニ ハ 囗交 値段 黒 晩", "工口 二 八 口交 值段 黑 晚", id="lookalikes of Chinese"),
        pytest.param("豈更\ufa0f\U0002f804", "岂更\ufa0f你", id="compatibility ideographs"),
        pytest.param("por\u00adn", "porn", id="soft hyphen"),
        pytest.param("a\u115f\u1160\u3164\uffa0b", "ab", id="Hangul fillers"),
        pytest.param("ﬁﬃﬆĳǆ", "fiffistijdz", id="ligatures"),
        pytest.param("Straße ſ K Å", "strasse s k a", id="case folding"),
        pytest.param("a\u00a0b\u2003c\u3000d\u202ff", "a b c d f", id="spaces"),
        pytest.param("a\u2800b\U0001d159c", "abc", id="blank symbols"),
        pytest.param("a\u2028b\u2029c\x85\x9fd", "a\nb\ncd", id="line ends and C1"),
        pytest.param("\ud83d x \ude00", "\ufffd x \ufffd", id="half pairs"),
        pytest.param("😀👍🏻", "😀👍🏻", id="emoji"),
        pytest.param("…½㍿", "...1⁄2株式会社", id="several"),
    ],
)
def test_the_classes(text: str, copy: str) -> None:
    """What each class of characters folds to."""
    assert copy == fold(text)


@given(TEXTS, TEXTS)
def test_a_text_is_disguised_if_a_character_is(text: str, more: str) -> None:
    """No character is a disguise or none for what stands beside it."""
    assert any(char in DISGUISES for char in text) == disguised(text)
    assert (disguised(text) or disguised(more)) == disguised(text + more)


def test_every_character_alone_is_a_disguise_or_none() -> None:
    """What is removed is a disguise, what stays itself is none, and what only changes case or loses an accent is none."""
    chars = [*COPIES]
    assert [] == [char for char in chars if disguised(char) != (char in DISGUISES)]
    assert set() == NOTHING - DISGUISES
    assert [] == [char for char in chars if disguised(char) and char == COPIES[char]]
    by_case = [char for char in chars if unicodedata.decomposition(char) == "" and char.casefold() == COPIES[char]]
    assert [] == [char for char in by_case if disguised(char)]
    accents = [char for char in chars if unicodedata.normalize("NFD", char)[0].isascii() and not char.isascii()]
    twice = {"\u037e", "\u1fef", "\u212a", "\u212b"}  # ; ` K Å: Unicode has them a second time
    assert len(accents) > 400
    assert [] == [char for char in accents if disguised(char) and char not in twice]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Hello, World! ~ 0-9\t\r\n", id="ASCII"),
        pytest.param("“今天”，他说：——《红楼梦》、「石头记」……一二三〇", id="Chinese"),
        pytest.param("國語敏感詞發髮後", id="traditional"),
        pytest.param("ＡＢＣ１２３，！？；：～", id="fullwidth"),
        pytest.param("ひらがなとアイウ ｷﾝｻ", id="Japanese"),
        pytest.param("안녕하세요 ㅋㅋㅋ", id="Hangul"),
        pytest.param("éàçñüåžİẞß øłđħŧ ǎ", id="accents"),
        pytest.param("ƙ ƈ ȿ", id="hooks"),
        pytest.param("a\u00a0b\u2003c\u3000d\u2028e\u202ff", id="spaces"),
        pytest.param("😀👍🏻 → ∑ ★ © 卍", id="symbols"),
        pytest.param("\ud83d x \ude00", id="half pairs"),
    ],
)
def test_no_disguise(text: str) -> None:
    """What every reader reads as its copy says it."""
    assert not disguised(text)


@pytest.mark.parametrize(
    "disguise",
    [
        *("\u200b", "\u0301", "\u00ad", "\ufe0f", "❤\ufe0f", "\x00", "\x7f", "\u3164", "\U000e0100"),
        *("𝐛", "ⓑ", "ᵇ", "🅱", "ʙ", "①", "²", "ﬁ", "㎏", "\u212a", "\u2f08", "\u2ee2", "\uf900"),
        *("В", "в", "β", "٣", "ı"),
    ],
)
def test_a_disguise(disguise: str) -> None:
    """What is left out of the copy, and what another letter or digit stands for there, is one among plain text too."""
    assert disguised(disguise)
    assert disguised("plain text " + disguise)
    assert disguised(disguise + "敏感词")


def test_common_chinese_is_no_disguise() -> None:
    """No character of GB 2312's rows of Chinese characters (6,763) nor of Big5's common ones (5,401) is a disguise."""
    for rows, last, codec, count in (
        (range(0xB0, 0xF8), 0xFE, "gb2312", 6763),
        (range(0xA4, 0xC7), 0xFE, "big5", 5401),
    ):
        cells = [*range(0x40 if codec == "big5" else 0xA1, last + 1)]
        han = bytes(byte for row in rows for cell in cells for byte in (row, cell)).decode(codec, "ignore")
        han = "".join(char for char in han if "\u4e00" <= char <= "\u9fff")
        assert count == len(han)
        assert not disguised(han)


def test_a_syllable_is_its_letters() -> None:
    """Every Hangul syllable folds as its canonical decomposition, so that typing it letter by letter hides nothing."""
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    assert [unicodedata.normalize("NFD", syllable) for syllable in syllables] == [*map(fold, syllables)]


def test_case_makes_no_difference() -> None:
    """A letter and its capital have one copy, also where only one of the two looks like an ASCII letter.

    Unless they look like two of them: Ν is taken for N and ν for v.
    """
    letters = [char for char in BMP[0xA0:0x590] if char.isalpha()]
    two = {char for char in letters if not fold(char) == fold(char.upper()) == fold(char.lower())}
    assert set("ΝνΥυ Ƽƽ") - {" "} == {unicodedata.normalize("NFD", char)[0] for char in two}


def test_common_chinese_stays() -> None:
    """Of the 3,755 characters of GB 2312's first level only 乾 (read gān: 干) has another copy."""
    rows = bytes(byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell))
    common = rows.decode("gb2312", "ignore")
    assert 3755 == len(common)
    assert ["乾"] == [char for char in common if fold(char) != char]


def test_prose_stays() -> None:
    """Chinese prose loses the width of its punctuation, Japanese its voicing marks (カ is 力 to it), English its capitals."""
    chinese = "“今天天气很好”，他说：我们一起去公园——散步吧。《红楼梦》、「石头记」！一二三〇"
    assert chinese.translate(str.maketrans("，：！", ",:!")) == fold(chinese)
    assert "ひらかなと力夕力ナの文字" == fold("ひらがなとカタカナの文字")
    english = "The quick brown fox — it's “quoted” — jumps over 13 lazy dogs; e.g. at 10:30 (UTC).\r\n\tEnd."
    assert english.lower() == fold(english)


def test_other_alphabets_stay_apart() -> None:
    """Lookalikes take few letters of an alphabet together."""

    def together(alphabet: str) -> set[str]:
        copies = {copy: "".join(char for char in alphabet if fold(char) == copy) for copy in map(fold, alphabet)}
        return {chars for chars in copies.values() if len(chars) > 1}

    assert {"вь", "её", "ий"} == together("абвгдеёжзийклмнопрстуфхцчшщъыьэюя")
    assert {"οσ"} == together("αβγδεζηθικλμνξοπρστυφχψω")
    assert {"ןו"} == {"".join(sorted(chars, reverse=True)) for chars in together("אבגדהוזחטיךכלםמןנסעףפץצקרשת")}
    assert set() == together("ابتثجحخدذرزسشصضطظعغفقكلمنهوي")


def _length_before(text: str, canonical: int, *, ended: bool) -> int:
    """`original_length` as it is defined: the longest prefix whose copy fits and that ends with no half-hidden letter."""
    if ended and len(fold(text)) <= canonical:
        return len(text)
    fits = [n for n in range(1, len(text) + 1) if len(fold(text[:n])) <= canonical and text[n - 1] not in NOTHING]
    return max(fits, default=0)


@given(TEXTS, st.integers(-3, 60), st.booleans())
def test_original_length(text: str, canonical: int, ended: bool) -> None:
    """The way back from a position in the copy is the longest prefix that it covers."""
    assert _length_before(text, canonical, ended=ended) == original_length(text, canonical, ended=ended)


@given(TEXTS)
def test_original_length_of_the_whole(text: str) -> None:
    """The whole copy covers the whole text, but for what folds to nothing at its end and may hide a letter to come."""
    assert len(text) - trailing_nothing(text) == original_length(text, len(fold(text)))
    assert len(text) == original_length(text, len(fold(text)), ended=True)


def test_what_folds_to_nothing_belongs_to_the_next() -> None:
    """A letter's hidden prefix leaves with the letter, not before it; a character of several leaves whole."""
    text = "a\u200b\u200bb…c\u200b"
    assert [0, 1, 4, 4, 4, 5, 6, 6] == [original_length(text, position) for position in range(8)]
    assert [0, 1, 4, 4, 4, 5, 7, 7] == [original_length(text, position, ended=True) for position in range(8)]


@given(TEXTS)
def test_an_even_text_has_a_copy_of_each_character(text: str) -> None:
    """A text is even if each of its characters has a copy of one character."""
    assert all(len(fold(char)) == 1 for char in text) == is_even(text)


@given(TEXTS, st.integers(0, 5))
def test_rows_of_nothing(text: str, before: int) -> None:
    """The longest row and the one at the end, as a split at all other characters shows them; a row before is continued."""
    rows = "".join("0" if char in NOTHING else " " for char in text).split(" ")
    assert len(rows[-1]) == trailing_nothing(text)
    assert max(before + len(rows[0]), *map(len, rows)) == longest_nothing(text, before)


@given(TEXTS, st.sampled_from(["", "天" * PROSE_CHARS, "😀"]), st.integers(0, 3))
def test_what_is_seen(text: str, before: str, most: int) -> None:
    """The copy, unless a row of characters without one is too long."""
    text = before + text
    assert (fold(text) if longest_nothing(text) <= most else None) == fold_seen(text, most)


def test_prose_is_folded_as_its_characters_are() -> None:
    """Where few characters change, and where many do."""
    few, many = "天" * PROSE_CHARS, "Ａ，é" * PROSE_CHARS
    for first in range(0, 0x110000, 5):
        text = "".join(map(chr, range(first, min(first + 5, 0x110000))))
        assert fold(few) + fold(text) == fold(few + text)
    assert fold(many) + "..." * 8 == fold(many + "…" * 8)
    assert fold(few) + "abcdefghijkl" == fold(few + "ABCDEFGHIJKL")


def test_every_character_alone() -> None:
    """The lengths are right for each character of the Basic Multilingual Plane, the quickly counted and the others."""
    assert [] == [char for char, copy in COPIES.items() if is_even(char) != (len(copy) == 1)]
    assert [] == [char for char in BMP if longest_nothing(char) != (char in NOTHING)]
    assert [] == [char for char in BMP if original_length(char, len(fold(char))) != (char not in NOTHING)]
    assert [] == [char for char in BMP if original_length(char, len(fold(char)) - 1)]


def _generator() -> ModuleType:
    """`.ci/fold_table.py`, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("fold_table", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    return generator


# The table depends on the Unicode version of the Python that made it, and on two packages that only its making needs.
# Elsewhere there is nothing to compare it with: this test is then not collected, for a skip would ask to be looked into.
if (
    json.loads(TABLE.read_bytes())["sources"]["unicodedata"] == unicodedata.unidata_version
    and importlib.util.find_spec("opencc")
    and importlib.util.find_spec("confusable_homoglyphs")
):

    def test_the_table_is_what_its_generator_makes() -> None:
        """Nobody has edited the table, nor the generator without running it."""
        generator = _generator()
        assert generator.dump(generator.build()) == TABLE.read_text("ascii")
