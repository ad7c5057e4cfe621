"""What a number or an address has to be to count as personal data. Each function is told what is written, without separators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from typing import Final, Literal

Kind = Literal["phone", "id_number", "bank_card", "email"]

# Phones

# With nothing before them, and with 86 or 0086.
MOBILE: Final = re.compile(r"(?:(?:00)?86)?1[3-9][0-9]{9}")
_MOBILE_BEGUN: Final = re.compile(r"(?:0|00|008|(?:00)?86|8|(?:(?:00)?86)?1(?:[3-9][0-9]{0,9})?)")

# Behind a +: how many digits a number has, with its country's code (ITU-T E.164). Others have from 9 to 15.
_LENGTHS: Final[tuple[tuple[str, tuple[int, int]], ...]] = (
    ("1", (11, 11)),  # North America
    ("7", (11, 11)),  # Russia, Kazakhstan
    ("33", (11, 11)),
    ("34", (11, 11)),
    ("44", (12, 12)),
    ("61", (11, 11)),
    ("65", (10, 10)),
    ("81", (11, 12)),
    ("82", (11, 12)),
    ("861", (12, 13)),  # a mobile, or Beijing
    ("86", (11, 13)),
    ("852", (11, 11)),
    ("853", (11, 11)),
    ("886", (11, 12)),
    ("91", (12, 12)),
)
_ANY_LENGTH: Final = (9, 15)
MAX_PHONE_DIGITS: Final = 15


def is_mobile(digits: str) -> bool:
    """Whether it is a Chinese mobile number."""
    return MOBILE.fullmatch(digits) is not None


def may_be_mobile(digits: str) -> bool:
    """Whether one may begin so."""
    return _MOBILE_BEGUN.fullmatch(digits) is not None


def phone_lengths(digits: str) -> tuple[int, int]:
    """How many digits a number that begins so behind its + has at least and at most; (0, 0): none does."""
    if digits.startswith("0"):
        return 0, 0
    return next((lengths for code, lengths in _LENGTHS if digits.startswith(code)), _ANY_LENGTH)


# Identity numbers: GB 11643-1999, and those of foreigners with permanent residence, which have a 9 before the province

_PROVINCES: Final = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split()
)
_PROVINCES_BEGUN: Final = {province[:length] for province in _PROVINCES for length in range(3)}
_CENTURIES_BEGUN: Final = frozenset(("", "1", "2", "19", "20"))
_ID_BEGUN: Final = re.compile(r"[0-9]{1,17}[0-9Xx]?")


def is_id_number(digits: str) -> bool:
    """Whether it is a resident's identity number: a province, a day that there was, and its check character."""
    if len(digits) != 18 or not may_be_id_number(digits):
        return False
    try:
        date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return False
    # ISO/IEC 7064, MOD 11-2
    values = [10 if char in "Xx" else int(char) for char in digits]
    return sum(value * pow(2, 17 - place, 11) for place, value in enumerate(values)) % 11 == 1


def may_be_id_number(digits: str) -> bool:
    """Whether one may begin so."""
    if _ID_BEGUN.fullmatch(digits) is None or (digits[-1] in "Xx" and len(digits) != 18):
        return False
    province = digits[1:3] if digits[0] == "9" else digits[:2]
    return province in _PROVINCES_BEGUN and digits[6:8] in _CENTURIES_BEGUN


# Bank cards: ISO/IEC 7812. The first digits from … to, and how many digits there are then.

ISSUERS: Final[tuple[tuple[str, str, Iterable[int]], ...]] = (
    ("62", "62", range(16, 20)),  # UnionPay
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("3528", "3589", range(16, 20)),  # JCB
    ("6011", "6011", range(16, 20)),  # Discover
    ("644", "659", range(16, 20)),
    ("300", "305", (14, 16)),  # Diners Club
    ("36", "36", (14, 16)),
    ("38", "39", (14, 16)),
    ("2200", "2204", range(16, 20)),  # Mir
    ("9558", "9558", (19,)),  # ICBC's older ones
)
MAX_CARD_DIGITS: Final = 19
# What stands at each value of a digit in every second place (Luhn's algorithm).
_DOUBLED: Final = dict(zip("0123456789", (0, 2, 4, 6, 8, 1, 3, 5, 7, 9), strict=True))


def is_card(digits: str) -> bool:
    """Whether it is the number of a card: of a known issuer, as long as theirs are, and with its check digit."""
    return (
        any(first <= digits[: len(first)] <= last and len(digits) in lengths for first, last, lengths in ISSUERS)
        and digits.isdigit()
        and (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % 10 == 0
    )


def may_be_card(digits: str) -> bool:
    """Whether one may begin so."""
    head = len(digits)
    return digits.isdigit() and any(first[:head] <= digits[: len(first)] <= last[:head] for first, last, _ in ISSUERS)


# Mail addresses: RFC 5321 as it is used, in ASCII

MAX_LOCAL_CHARS: Final = 64
MAX_DOMAIN_CHARS: Final = 253
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_TOP: Final = re.compile(r"(?:[Xx][Nn]--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,63})(?![A-Za-z0-9])")
# `icon@2x.png` is a file.
_FILES: Final = frozenset("png jpg jpeg gif webp svg avif heic ico".split())


def domain_chars(text: str) -> int:
    """How many characters at the beginning of `text` are a domain with a top level; 0 if none are."""
    found = length = 0
    for number, label in enumerate(text.split(".")):
        top = _TOP.match(label) if number else None
        if top is not None:
            found = length + top.end() if top[0].lower() not in _FILES else 0
        if _LABEL.fullmatch(label) is None:
            break
        length += len(label) + 1
    return found
