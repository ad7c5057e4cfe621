"""Phrases in disguise: how many of them a lexicon stops in a stream, class by class.

A *class* is a function from a phrase, as a list of its characters, to the same list in disguise; `evasion` makes it one.
What characters it may use it takes from Unicode (`unicodedata`, and UTS 39's confusables by way of
confusable-homoglyphs) or from OpenCC, never from the relay's own table. None says that the class has nothing for this
phrase. To add a class, write one function.

Each variant stands in a sentence, comes in pieces of random length, and is stopped if not one of its characters leaves.
"""

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from random import Random

import opencc
import pytest

from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay_plugins.lexicon import Lexicon

# What is stopped is harmless; characters that have many other forms stand in it.
HAN = (
    "敏感词 六合彩 假发票 暴力行为 毒品交易 黑金网络 色情直播 高利贷款 走私车辆 人口贩卖 代开证书 赌博 裸聊 冰毒 洗钱 枪支 "
    "传销组织 非法集资 龙虎豹 女优视频 口令红包 工业酒精"
).split()
WORDS = "porn viagra casino heroin cocaine nudes jackpot hitman ransom counterfeit zyklon".split()
TWO_WORDS = ["buy meth", "free nudes", "fake passport", "kill list", "quick loan", "bomb recipe", "escort girls"]
PHRASES = (*HAN, *WORDS, *TWO_WORDS)

# How many variants of a phrase each class makes.
VARIANTS = 12 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 3

Pieces = Sequence[str]
Evasion = Callable[[Pieces, Random], Pieces | None]

EVASIONS: dict[str, Evasion] = {}

# The share of each class that has to be stopped. Two have what is no disguise: capital I and iotas for l, the Arabic five
# for o, ſ for f; and the gap and line fillers U+A8F9, U+10AF6, U+1144E and U+11945, which are seen, in rows longer than a gap.
LEAST = defaultdict(lambda: 0.95, blind_confusables=0.90, blind_invisible=0.75)


def evasion(make: Evasion) -> Evasion:
    """Make a class of a function. It is called as the function is."""
    EVASIONS[make.__name__] = make
    return make


# What Unicode says

EVERY = [char for char in map(chr, range(0x110000)) if unicodedata.category(char) not in {"Cn", "Co", "Cs"}]
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


@cache
def named(pattern: str) -> tuple[str, ...]:
    """Characters whose whole name matches."""
    matches = re.compile(pattern).fullmatch
    return tuple(char for char in EVERY if matches(unicodedata.name(char, "")))


@cache
def of_category(*categories: str) -> tuple[str, ...]:
    return tuple(char for char in EVERY if unicodedata.category(char) in categories)


@cache
def forms_of(*kinds: str) -> dict[str, list[str]]:
    """By character: those that decompose into it, in one of these ways, and into nothing else."""
    forms = defaultdict(list)
    for char in EVERY:
        kind, *codes = unicodedata.decomposition(char).split() or [""]
        if kind in kinds:
            whole = "".join(chr(int(code, 16)) for code in codes).lower()
            letter = re.sub(r"^\((.+)\)$", r"\1", whole)  # ⒜
            if len(letter) == 1:
                forms[letter].append(char)
    return dict(forms)


@cache
def letters_named(pattern: str) -> dict[str, list[str]]:
    """By letter: the characters whose names match, with the letter as the pattern's only group."""
    letters = defaultdict(list)
    for char in EVERY:
        match = re.fullmatch(pattern, unicodedata.name(char, ""))
        if match and match[1].lower() in LETTERS:
            letters[match[1].lower()].append(char)
    return dict(letters)


@cache
def confusables() -> dict[str, list[str]]:
    """By character: what UTS 39 says it may be confused with, as single characters.

    A letter's are those of both its cases. Not what is another letter or digit in its own right: 0, 𝟎 and ০ for o are
    another evasion (`digits_for_letters`), and so are I, ℐ and Ι (the capital of ι) for l, which are not caught.
    """
    text = resources.files("confusable_homoglyphs").joinpath("confusables.json").read_text("utf-8")
    pairs = {char.strip("\u200e"): entries for char, entries in json.loads(text).items()}

    def looks(char: str) -> list[str]:
        found = {entry["c"].strip("\u200e") for case in {char, char.upper()} for entry in pairs.get(case, ())}
        return sorted(other for other in found if len(other) == 1 and not is_another(other, char))

    def is_another(other: str, char: str) -> bool:
        itself = unicodedata.normalize("NFKC", other).casefold()
        if char not in LETTERS or itself == char:
            return False
        if itself.isascii() or unicodedata.numeric(other, None) is not None:
            return True
        return itself != other and not LETTERS.isdisjoint({entry["c"] for entry in pairs.get(itself, ())} - {char})

    return {char: others for char in {*LETTERS, *"0123456789", *"".join(HAN)} if (others := looks(char))}


# How a disguise is put on


def changed(pieces: Pieces, forms: dict[str, list[str]], random: Random, share: float = 0.6) -> Pieces | None:
    """Some characters, at least one, in another form; None if none has any."""
    able = [n for n, piece in enumerate(pieces) if forms.get(piece)]
    if not able:
        return None
    chosen = {random.choice(able), *(n for n in able if random.random() < share)}
    return [random.choice(forms[piece]) if n in chosen else piece for n, piece in enumerate(pieces)]


def filled(pieces: Pieces, fillers: Sequence[str], random: Random, most: int = 3) -> Pieces:
    """Something behind some characters, at least behind one that is not the last."""
    chosen = {random.randrange(len(pieces) - 1), *(n for n in range(len(pieces)) if random.random() < 0.5)}
    return [
        piece + "".join(random.choices(fillers, k=random.randint(1, most))) if n in chosen else piece
        for n, piece in enumerate(pieces)
    ]


def apart(pieces: Pieces, separators: Sequence[str], random: Random, *, most: int = 1) -> Pieces:
    """Separators between characters: between some Chinese ones, between all of a word.

    What stands on both sides of a lone comma, quote or bracket is prose, not a phrase: 好人，口才.
    """
    han = not pieces[0].isascii()
    gaps = [n for n in range(len(pieces) - 1) if pieces[n] == " " or pieces[n + 1] != " "]
    if han:
        gaps = random.sample(gaps, random.randint(1, len(gaps)))
    if len(gaps) == 1:
        separators = [separator for separator in separators if not of_clauses(separator)]
    written = list(pieces)
    for n in gaps:
        written[n] = written[n].strip() + "".join(random.choices(separators, k=random.randint(1, most)))
    return written


# Characters that nobody sees


@evasion
def zero_width(pieces: Pieces, random: Random) -> Pieces:
    hidden = [char for char in of_category("Cf") if unicodedata.bidirectional(char) == "BN" and ord(char) < 0xE0000]
    return filled(pieces, hidden, random)


@evasion
def other_format_characters(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, of_category("Cf"), random)


@evasion
def bidi_controls(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, named(r".*(LEFT-TO-RIGHT|RIGHT-TO-LEFT|POP DIRECTIONAL|FIRST STRONG|LETTER MARK).*(MARK|OVERRIDE|EMBEDDING|ISOLATE|FORMATTING)"), random)  # fmt: skip


@evasion
def soft_hyphens(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, named("SOFT HYPHEN"), random)


@evasion
def variation_selectors(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, named(r"(MONGOLIAN FREE )?VARIATION SELECTOR.*"), random)


@evasion
def tag_characters(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, named(r"TAG .*|CANCEL TAG|LANGUAGE TAG"), random)


@evasion
def fillers_and_controls(pieces: Pieces, random: Random) -> Pieces:
    controls = [char for char in of_category("Cc") if not char.isspace()]
    return filled(pieces, [*controls, *named(r"(HALFWIDTH )?HANGUL .*FILLER")], random)


@evasion
def combining_marks(pieces: Pieces, random: Random) -> Pieces:
    return filled(pieces, of_category("Mn", "Me"), random, most=6)


# Letters in other forms


@evasion
def fullwidth(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, forms_of("<wide>", "<narrow>"), random)


@evasion
def mathematical(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, forms_of("<font>"), random)


@evasion
def enclosed(pieces: Pieces, random: Random) -> Pieces | None:
    forms = defaultdict(list, {char: list(others) for char, others in forms_of("<circle>", "<square>").items()})
    for letter, others in letters_named(r"NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER ([A-Z])").items():
        forms[letter] += others
    return changed(pieces, forms, random)


@evasion
def parenthesised(pieces: Pieces, random: Random) -> Pieces | None:
    forms = letters_named(r"PARENTHESIZED LATIN (?:CAPITAL|SMALL) LETTER ([A-Z])")
    return changed(pieces, forms, random, share=1.0)


@evasion
def flags(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, letters_named(r"REGIONAL INDICATOR SYMBOL LETTER ([A-Z])"), random, share=1.0)


@evasion
def small_capitals_and_modifiers(pieces: Pieces, random: Random) -> Pieces | None:
    forms = defaultdict(list, {char: list(others) for char, others in forms_of("<super>", "<sub>").items()})
    for letter, others in letters_named(r"LATIN LETTER SMALL CAPITAL ([A-Z])").items():
        forms[letter] += others
    return changed(pieces, forms, random)


@evasion
def named_after_letters(pieces: Pieces, random: Random) -> Pieces | None:
    """With hooks and strokes, turned, insular, …, as far as they are not composed of a letter and marks.

    Not ɯ, which is a turned m by name and looks like a w; nor ß, a sharp s.
    """
    return changed(pieces, _named_after(), random)


@cache
def _named_after() -> dict[str, list[str]]:
    looks = {other: letter for letter in sorted(LETTERS) for other in confusables()[letter]}
    names = letters_named(r"LATIN (?:SMALL |CAPITAL )?LETTER(?: (?!SHARP)[A-Z]{2,})* ([A-Z])(?: WITH .*)?")
    return {
        letter: [
            other
            for other in others
            if not unicodedata.decomposition(other)
            and {looks.get(other, letter), looks.get(other.lower(), letter)} == {letter}
        ]
        for letter, others in names.items()
    }


@evasion
def accented(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, _accented(), random)


@cache
def _accented() -> dict[str, list[str]]:
    forms = defaultdict(list)
    for char in EVERY:
        letter, *marks = unicodedata.normalize("NFD", char)
        if marks and letter.lower() in LETTERS:
            forms[letter.lower()].append(char)
    return dict(forms)


@evasion
def cases(pieces: Pieces, random: Random) -> Pieces | None:
    """Also İ, ı, ſ and K, which are i, s and k in another case."""
    return changed(pieces, _cases(), random)


@cache
def _cases() -> dict[str, list[str]]:
    forms = defaultdict(list)
    for char in EVERY:
        for letter in {char.lower().rstrip("\u0307"), char.upper().lower(), char.casefold()} & LETTERS - {char}:
            forms[letter].append(char)
    return dict(forms)


# Characters of other scripts


@evasion
def cyrillic_and_greek(pieces: Pieces, random: Random) -> Pieces | None:
    forms = {
        letter: [other for other in others if unicodedata.name(other, "").startswith(("CYRILLIC", "GREEK"))]
        for letter, others in confusables().items()
    }
    return changed(pieces, forms, random)


@evasion
def lookalikes(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, {char: confusables()[char] for char in LETTERS if char in confusables()}, random)


@evasion
def lookalikes_of_chinese(pieces: Pieces, random: Random) -> Pieces | None:
    return changed(pieces, {char: looks for char, looks in confusables().items() if char not in LETTERS}, random)


@evasion
def traditional(pieces: Pieces, random: Random) -> Pieces | None:
    convert = _converter(random.choice(["s2t", "s2tw", "s2hk", "s2twp"])).convert
    forms = {piece: [other] for piece in pieces if len(other := convert(piece)) == 1 and other != piece}
    return changed(pieces, forms, random)


@cache
def _converter(name: str) -> opencc.OpenCC:
    return opencc.OpenCC(name)


@evasion
def compatibility_ideographs(pieces: Pieces, random: Random) -> Pieces | None:
    """Those of the simplified characters and of the traditional ones."""
    compatible = {char: others for char, others in forms_of("", "<compat>").items() if char.isalpha()}
    forms = {}
    for piece in pieces:
        both = {piece, _converter("s2t").convert(piece)} - LETTERS
        forms[piece] = [other for char in sorted(both) for other in compatible.get(char, ())]
    return changed(pieces, forms, random)


# Digits


# A sign for a letter stands inside a word: $ex is a variable, US$ money.
DIGITS = {"o": "0", "i": "1", "l": "1", "e": "3", "a": "4@", "s": "5$", "t": "7", "b": "8"}


@evasion
def digits_for_letters(pieces: Pieces, random: Random) -> Pieces | None:
    """One letter of each word to half of them: a55 is a telephone, 50s a time."""
    if not pieces[0].isascii():
        return None
    words = [list(word) for word in "".join(pieces).split(" ")]
    for word in words:
        able = [n for n, letter in enumerate(word) if letter in DIGITS]
        for n in random.sample(able, random.randint(min(1, len(able)), min(len(able), len(word) // 2))):
            digits = DIGITS[word[n]]
            word[n] = random.choice(digits) if 0 < n < len(word) - 1 else digits[0]
    return list(" ".join(map("".join, words)))


# Separators


_END = re.compile("FULL STOP|EXCLAMATION|QUESTION MARK|SEMICOLON|ELLIPSIS|LEADER")
_CLAUSE = re.compile("COMMA|COLON|QUOTATION MARK|APOSTROPHE|PRIME")
_LETTER = re.compile("CJK RADICAL|KANGXI RADICAL|CJK STROKE|LATIN CAPITAL LETTER|SYMBOL LETTER")


def of_clauses(separator: str) -> bool:
    form = unicodedata.normalize("NFKC", separator)
    return (
        unicodedata.category(form) in {"Ps", "Pe", "Pi", "Pf"} or _CLAUSE.search(unicodedata.name(form, "")) is not None
    )


@cache
def _separators() -> tuple[str, ...]:
    """Punctuation and symbols that end no sentence, and are or look like no letter: who writes 敏×感 may mean an x."""
    lookalikes = {other for char, others in confusables().items() if char.isascii() for other in others}
    return tuple(
        char
        for char in of_category("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So")
        if len(form := unicodedata.normalize("NFKC", char)) == 1
        and not form.isalnum()
        and unicodedata.normalize("NFKD", char)[0] not in lookalikes
        and not _END.search(unicodedata.name(form))
        and not _LETTER.search(unicodedata.name(char))
    )


SPACES = [*of_category("Zs"), "\t"]
KEYBOARD = [char for char in _separators() if char.isascii()]


@evasion
def spaces(pieces: Pieces, random: Random) -> Pieces:
    return apart(pieces, SPACES, random)


@evasion
def keyboard_separators(pieces: Pieces, random: Random) -> Pieces:
    return apart(pieces, KEYBOARD, random)


@evasion
def any_separators(pieces: Pieces, random: Random) -> Pieces:
    return apart(pieces, _separators(), random)


@evasion
def two_separators(pieces: Pieces, random: Random) -> Pieces:
    return apart(pieces, [*SPACES, *_separators()], random, most=2)


@evasion
def one_separator_throughout(pieces: Pieces, random: Random) -> Pieces:
    separator = random.choice([*(char for char in (*KEYBOARD, *SPACES) if not of_clauses(char)), *"·•—–～＊－"])
    return apart(pieces, [separator], random)


@evasion
def fullwidth_separators(pieces: Pieces, random: Random) -> Pieces:
    kinds = ("<wide>", "<narrow>", "<small>", "<vertical>")
    wide = [char for char in _separators() if unicodedata.decomposition(char).startswith(kinds)]
    return apart(pieces, wide, random)


@evasion
def throughout(pieces: Pieces, random: Random) -> Pieces | None:
    """The same separator between all characters, be it a comma: 敏，感，词."""
    separator = random.choice([char for char in _separators() if of_clauses(char)])
    return (
        [piece.strip() + separator * (n < len(pieces) - 1) for n, piece in enumerate(pieces)]
        if len(pieces) > 2
        else None
    )


# Two at once

_UNSEEN: tuple[Evasion, ...] = (
    zero_width,
    bidi_controls,
    soft_hyphens,
    variation_selectors,
    tag_characters,
    combining_marks,
)
_APART: tuple[Evasion, ...] = (spaces, keyboard_separators, any_separators, two_separators)
_OTHER: tuple[Evasion, ...] = (
    *(fullwidth, mathematical, enclosed, small_capitals_and_modifiers, accented, cases),
    *(cyrillic_and_greek, lookalikes, lookalikes_of_chinese, traditional, compatibility_ideographs),
)


def _other(pieces: Pieces, random: Random) -> Pieces | None:
    """In the letters of some class that has any for this phrase."""
    drawn = (make(pieces, random) for make in random.sample(_OTHER, len(_OTHER)))
    return next((other for other in drawn if other is not None), None)


@evasion
def other_letters_and_unseen(pieces: Pieces, random: Random) -> Pieces | None:
    other = _other(pieces, random)
    return random.choice(_UNSEEN)(other, random) if other is not None else None


@evasion
def other_letters_apart(pieces: Pieces, random: Random) -> Pieces | None:
    other, separated = _other(pieces, random), random.choice(_APART)(pieces, random)
    if other is None or separated is None:
        return None
    return [
        gap if piece == " " else letter + gap.removeprefix(piece)
        for piece, letter, gap in zip(pieces, other, separated, strict=True)
    ]


@evasion
def unseen_and_apart(pieces: Pieces, random: Random) -> Pieces:
    separated = random.choice(_APART)(pieces, random)
    return [piece if piece.isspace() else piece + random.choice(_hidden()) for piece in separated or ()]


@cache
def _hidden() -> tuple[str, ...]:
    return (*of_category("Cf"), *of_category("Mn", "Me"))


@evasion
def ransom_note(pieces: Pieces, random: Random) -> Pieces | None:
    """Every character from another alphabet."""
    drawn = [disguised for make in _OTHER if (disguised := make(pieces, random)) is not None]
    return [random.choice(column) for column in zip(*drawn, strict=True)] if drawn else None


# Made blind: by someone who had seen neither the relay's table nor what the classes above leave out


@evasion
def blind_confusables(pieces: Pieces, random: Random) -> Pieces | None:
    """One letter to all of them as any character that UTS 39 takes for it, of any script."""
    able = [n for n, piece in enumerate(pieces) if piece.isalpha() and _taken_for(piece)]
    if not able:
        return None
    chosen = set(random.sample(able, random.randint(1, len(able))))
    return [random.choice(_taken_for(piece)) if n in chosen else piece for n, piece in enumerate(pieces)]


@cache
def _taken_for(letter: str) -> tuple[str, ...]:
    """The single characters with the letter's prototype.

    The package lists under a prototype all characters that have it, and under such a character its prototype: what is
    one step or two away has the same. It writes characters of scripts that run leftwards between two marks.
    """
    near = [entry["c"] for entry in _uts39().get(letter, ())]
    far = [entry["c"] for other in near for entry in _uts39().get(other, ())]
    alone = {other.strip("\u200e") for other in near + far}
    return tuple(sorted(other for other in alone if len(other) == 1 and other != letter))


@cache
def _uts39() -> dict[str, list[dict[str, str]]]:
    file = resources.files("confusable_homoglyphs") / "confusables.json"
    data: dict[str, list[dict[str, str]]] = json.loads(file.read_text(encoding="utf-8"))
    return data


@evasion
def blind_invisible(pieces: Pieces, random: Random) -> Pieces:
    """One to eight of a few unseen characters before, between and behind all letters, in any case and width."""
    few = [random.choice(random.choice(random.choice(_unseen()))) for _ in range(random.randint(3, 8))]

    def some() -> str:
        return "".join(random.choices(few, k=random.randint(1, 8)))

    letters = [random.choice((piece.lower(), piece.upper())) for piece in pieces]
    shown = [random.choice((letter, _wide().get(letter, letter))) for letter in letters]
    return [some(), *(letter + some() for letter in shown)]


# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties, with what is not assigned in it.
DEFAULT_IGNORABLE = (
    "00AD 034F 061C 115F..1160 17B4..17B5 180B..180F 200B..200F 202A..202E 2060..206F 3164 FE00..FE0F FEFF FFA0 "
    "FFF0..FFF8 1BCA0..1BCA3 1D173..1D17A E0000..E0FFF"
).split()


@cache
def _unseen() -> list[list[str]]:
    """Unseen characters: kinds, of each its groups, of each its characters.

    A kind is drawn before a character, so that a large one does not crowd out a small one; likewise a range.
    """
    kinds: dict[str, str] = defaultdict(str)
    for char in map(chr, range(0x110000)):
        category, name = unicodedata.category(char), unicodedata.name(char, "")
        if category in {"Cf", "Mn", "Me", "Cc"} and char not in "\t\n\r":
            kinds[category] += char
        if "VARIATION SELECTOR" in name:
            kinds["variation selectors"] += char
        if re.search(r"FILLER$|BRAILLE PATTERN BLANK|NULL NOTEHEAD", name):
            kinds["fillers and blanks"] += char
    ranges = []
    for bounds in DEFAULT_IGNORABLE:
        first, *last = (int(bound, 16) for bound in bounds.split(".."))
        ranges.append("".join(map(chr, range(first, (last or [first])[0] + 1))))
    return [*([kind] for kind in kinds.values()), ranges]


@cache
def _wide() -> dict[str, str]:
    """Characters that have a wide form, with it."""
    parts = [(char, unicodedata.decomposition(char).split()) for char in EVERY]
    return {chr(int(part[1], 16)): char for char, part in parts if len(part) == 2 and part[0] == "<wide>"}


@evasion
def blind_confusables_again(pieces: Pieces, random: Random) -> Pieces | None:
    """One to three letters, never all, as any letter of any script that UTS 39 takes for it."""
    letters = [n for n, piece in enumerate(pieces) if piece.isalpha()]
    able = [n for n in letters if _letters_taken_for(pieces[n])]
    most = min(3, len(able), len(letters) - 1)
    if most < 1:
        return None
    chosen = set(random.sample(able, random.randint(1, most)))
    return [random.choice(_letters_taken_for(piece)) if n in chosen else piece for n, piece in enumerate(pieces)]


@cache
def _letters_taken_for(letter: str) -> tuple[str, ...]:
    return tuple(other for other in _taken_for(letter) if unicodedata.category(other).startswith("L"))


@evasion
def blind_format_characters(pieces: Pieces, random: Random) -> Pieces:
    """One to four characters of Cf, Mn and Me between any two letters, which are in any case."""

    def some() -> str:
        # The category first, so that Mn does not crowd out the others.
        categories = random.choices(("Cf", "Mn", "Me"), k=random.randint(1, 4))
        return "".join(random.choice(of_category(category)) for category in categories)

    shown = [random.choice((piece.lower(), piece.upper())) for piece in pieces]
    between = [some() if one.isalpha() and other.isalpha() else "" for one, other in pairwise(pieces)]
    return [letter + gap for letter, gap in zip(shown, [*between, ""], strict=True)]


# The experiment


def variants(make: Evasion, random: Random) -> Iterable[tuple[str, str]]:
    """Each phrase with its variants, none of which is the phrase itself."""
    for phrase in PHRASES:
        for _ in range(VARIANTS):
            pieces = make(list(phrase), random)
            variant = "".join(pieces) if pieces is not None else phrase
            if variant != phrase:
                yield phrase, variant


SENTENCES = {
    True: ("昨天有人在这里提到了", "的事情，我们没有回答。"),
    False: ("Yesterday they spoke of ", " again, and we left."),
}


def released(lexicon: Lexicon, text: str, random: Random) -> str:
    """What a client gets of a reply that comes in random pieces."""
    guard = Guard(Policy(), lambda: [lexicon.scanner()])
    at = 0
    while at < len(text):
        piece = text[at : at + random.randint(1, 6)]
        at += len(piece)
        guard.feed(_frame({"content": piece}), 0.0)
    guard.feed(_frame({}, "stop"), 0.0)
    guard.end(0.0)
    deltas = [choice["delta"] for chunk in guard.released for choice in (chunk.json or {})["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def _frame(delta: dict[str, str], finish_reason: str | None = None) -> Chunk:
    return Chunk.event({"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


@cache
def lexicon() -> Lexicon:
    return Lexicon(words=PHRASES)


@dataclass(frozen=True)
class Result:
    """Of a class: how many variants were made, and the phrases and variants of those that were not stopped."""

    made: int
    escaped: tuple[tuple[str, str], ...]

    @property
    def caught(self) -> int:
        return self.made - len(self.escaped)


@cache
def result(name: str) -> Result:
    """Made once in a process, the same in each."""
    random = Random(name)
    made, escaped = 0, []
    for phrase, variant in variants(EVASIONS[name], random):
        before, after = SENTENCES[phrase in HAN]
        text = before + variant + after
        left = released(lexicon(), text, random)
        assert text.startswith(left) or not left.startswith(before)
        made += 1
        if not before.startswith(left):
            escaped.append((phrase, variant))
    return Result(made, tuple(escaped))


@pytest.mark.parametrize("name", EVASIONS)
def test_a_class_is_caught(name: str) -> None:
    """Of each class at least 95 % of the variants, or what `LEAST` says, are stopped before a character of them leaves."""
    found = result(name)
    assert found.caught >= LEAST[name] * found.made > 0, f"{len(found.escaped)} of {found.made}: {found.escaped}"


def test_all_classes_together() -> None:
    """At least 12 classes, 2,000 variants, and 99 % of them stopped."""
    results = {name: result(name) for name in EVASIONS}
    for name, found in sorted(results.items(), key=lambda item: item[1].caught / item[1].made):
        print(f"{name:32} {found.caught:5} of {found.made:5}  {found.caught / found.made:7.2%}")
    caught, made = sum(found.caught for found in results.values()), sum(found.made for found in results.values())
    print(f"{len(results)} classes {caught:21} of {made:5}  {caught / made:7.2%}")
    assert len(results) >= 12
    assert made >= 2000
    assert caught >= 0.99 * made


def test_the_sentences_leave() -> None:
    """Without a phrase in them they are released whole; with one as it is, up to it."""
    random = Random(0)
    for han, (before, after) in SENTENCES.items():
        phrase = HAN[0] if han else WORDS[0]
        assert before + after == released(lexicon(), before + after, random)
        assert before.startswith(released(lexicon(), before + phrase + after, random))
