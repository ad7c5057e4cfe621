"""A hundred thousand phrases: found like a few."""

from collections.abc import Iterator
from random import Random

import pytest

from relay_plugins.lexicon import Manner, Phrases, PhraseScanner
from relay_plugins.lexicon.automaton import SHARD, Automaton

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 1500)))
MANNER = Manner("bad", "block")


def drawn_words(random: Random) -> Iterator[str]:
    for _ in range(97_000):
        yield "".join(random.choices(HAN, k=random.choice((2, 3, 4, 5, 6))))
    for _ in range(3_000):
        yield "".join(random.choices("etaoinsh", k=random.choice((5, 6, 7, 8))))


@pytest.fixture(scope="session")
def many() -> tuple[frozenset[str], Phrases]:
    words = frozenset(drawn_words(Random(4)))
    return words, Phrases(((word, MANNER) for word in words), "lexicon")


def test_all_of_them_are_there(many: tuple[frozenset[str], Phrases]) -> None:
    """Each phrase is found, alone and apart, whichever automaton has it."""
    words, lexicon = many
    assert len(words) == len(lexicon) > 2 * SHARD
    for word in sorted(words)[::97]:
        assert any((0, len(word)) == (hit.start, hit.end) for hit in lexicon.hits(word, "", ""))
        written = "*".join(word)
        assert any((0, len(written)) == (hit.start, hit.end) for hit in lexicon.hits(written, "", ""))


def test_a_long_text(many: tuple[frozenset[str], Phrases]) -> None:
    """What a set of all phrases finds in a text is found in it whole and as it comes."""
    words, lexicon = many
    random = Random(5)
    text = "".join(
        random.choice((random.choice(HAN), random.choice(HAN), "。", "abc ", word))
        for word in random.choices(sorted(words), k=4000)
        if word > "z"
    )
    expected = [
        (start, start + length)
        for start in range(len(text))
        for length in range(2, 7)
        if text[start : start + length] in words
    ]
    assert len(expected) > 500
    assert expected == sorted((hit.start, hit.end) for hit in lexicon.hits(text, "", ""))
    scanner = PhraseScanner(lexicon)
    came = [hit for start in range(0, len(text), 3) for hit in scanner.feed(text[start : start + 3])]
    assert expected == sorted((hit.start, hit.end) for hit in [*came, *scanner.finish()])


def test_several_automata_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strings keep their numbers, however many automata there are."""
    strings = ["a", "ab", "abc", "b", "bc", "c", "ca"]
    one = Automaton(strings).find("abcab")
    for size in (1, 2, 3):
        monkeypatch.setattr("relay_plugins.lexicon.automaton.SHARD", size)
        assert sorted(one) == sorted(Automaton(strings).find("abcab"))
    assert [] == Automaton([]).find("abc")
