"""Escapes and surrogate pairs, cut anywhere: always as `json.loads` reads the whole."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.escapes import SurrogatePairer, Unescaper

Decoder = Unescaper | SurrogatePairer

CUTS = st.lists(st.integers(0, 200), max_size=12)
# All that an escape is made of and can be broken by, in an order that often makes one.
SOUP = st.lists(
    st.sampled_from(
        ["\\", "\\u", "\\ud83d", "\\ude00", "\\u4f60", "\\uD83D\\uDE00", "d8", "3", "G", "n", '"', "/", "你"]
    ),
    max_size=12,
).map("".join)
HALVES = st.lists(st.sampled_from(["\ud83d", "\udbff", "\ude00", "\udc00", "a", "你", "😀"]), max_size=12).map("".join)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(borders)]


def run(decoder: Decoder, parts: Sequence[str]) -> str:
    text = "".join(map(decoder.feed, parts)) + decoder.finish()
    assert not decoder.pending
    return text


def replaced(text: str) -> str:
    """The text as JSON's reader joins its halves, with U+FFFD for each that is left."""
    whole: str = json.loads(json.dumps(text))
    return re.sub("[\ud800-\udfff]", "\ufffd", whole)


@given(st.text(st.characters(), max_size=40), st.booleans(), CUTS)
def test_escapes_are_read_as_json_reads_them(said: str, ensure_ascii: bool, cuts: list[int]) -> None:
    """What `json.dumps` escapes comes out as `json.loads` reads it, whole, character by character and cut at random."""
    escaped = json.dumps(said, ensure_ascii=ensure_ascii)[1:-1]
    expected = json.loads(f'"{escaped}"')
    assert expected == run(Unescaper(), [escaped])
    assert expected == run(Unescaper(), list(escaped))
    assert expected == run(Unescaper(), pieces(escaped, cuts))


@given(SOUP, CUTS)
def test_anything_is_read_alike_however_it_is_cut(soup: str, cuts: list[int]) -> None:
    """Cuts change nothing for what is no JSON either; what is JSON is read as JSON."""
    whole = run(Unescaper(), [soup])
    assert whole == run(Unescaper(), list(soup))
    assert whole == run(Unescaper(), pieces(soup, cuts))
    try:
        expected = json.loads(f'"{soup}"')
    except json.JSONDecodeError:
        return
    assert expected == whole


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\"\\\/\b\f\n\r\t", '"\\/\b\f\n\r\t'),
        (r"\u4F60\u597d", "你好"),
        (r"\ud83d\ude00", "😀"),
        (r"\ude00\ud83d", "\ude00\ud83d"),
        (r"\ud83d\ud83d\ude00", "\ud83d😀"),
        (r"\ud83d\n", "\ud83d\n"),
        (r"\ud83d\u0041", "\ud83dA"),
        (r"\\u4f60\\\u4f60", "\\u4f60\\你"),
        (r"\x\u12g4\ud8\u4f60", r"\x\u12g4\ud8你"),
        (r"\ud83d\x", "\ud83d\\x"),
        (r'{"q": "\u4f60"}', '{"q": "你"}'),
        ("a\\", "a\\"),
        (r"\u4f", r"\u4f"),
        (r"\ud83d\ude0", "\ud83d\\ude0"),
    ],
)
def test_each_kind_of_escape(escaped: str, text: str) -> None:
    """What is an escape is decoded once; what is none, or is cut by the end, is passed on as it stands."""
    assert text == run(Unescaper(), [escaped])
    assert text == run(Unescaper(), list(escaped))


def test_pending_while_an_escape_is_cut() -> None:
    """An escape's characters are held from its backslash on, a high half until its partner can be told."""
    unescaper = Unescaper()
    told = [(unescaper.feed(char), unescaper.pending) for char in r"a\nb"]
    assert [("a", False), ("", True), ("\n", False), ("b", False)] == told
    told = [(unescaper.feed(piece), unescaper.pending) for piece in (r"\ud83d", r"\ude0", "0", r"\ud83d", "x")]
    assert [("", True), ("", True), ("😀", False), ("", True), ("\ud83dx", False)] == told


@given(SOUP)
def test_little_is_held(soup: str) -> None:
    """Never more than eleven characters are held: two escapes but for one digit."""
    for end in range(len(soup) + 1):
        unescaper = Unescaper()
        unescaper.feed(soup[:end])
        assert len(unescaper.finish()) <= 11


@given(st.one_of(HALVES, st.text(st.characters(), max_size=40)), CUTS)
def test_halves_are_joined_as_json_joins_them(text: str, cuts: list[int]) -> None:
    """Halves in neighbouring pieces become their character, lone ones U+FFFD; all else comes out as it came."""
    expected = replaced(text)
    assert expected == run(SurrogatePairer(), [text])
    assert expected == run(SurrogatePairer(), list(text))
    assert expected == run(SurrogatePairer(), pieces(text, cuts))


@given(st.text(max_size=40), CUTS)
def test_a_text_sent_half_by_half_is_whole_again(text: str, cuts: list[int]) -> None:
    """A text whose characters outside the Basic Multilingual Plane come as halves is the text."""
    units = memoryview(text.encode("utf-16-le")).cast("H")
    halves = "".join(map(chr, units))
    assert text == run(SurrogatePairer(), pieces(halves, cuts))


def test_pending_while_a_half_waits() -> None:
    """Only a high half at the end is held; an empty piece decides nothing."""
    pairer = SurrogatePairer()
    told = [
        (pairer.feed(piece), pairer.pending) for piece in ("a\ud83d", "", "\ude00b", "\ude00", "\ud83d", "\ud83d", "c")
    ]
    expected = [
        ("a", True),
        ("", True),
        ("😀b", False),
        ("\ufffd", False),
        ("", True),
        ("\ufffd", True),
        ("\ufffdc", False),
    ]
    assert expected == told
