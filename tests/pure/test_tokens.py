"""The estimate of tokens: its numbers, and what sums of it may rely on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.tokens import estimate

ANY = st.text(st.characters(codec=None))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0.0),
        ("a", 0.24),
        ("The quick brown fox", 19 * 0.24),
        ("你", 0.68),
        ("你好，世界", 5 * 0.68),
        ("é", 0.34 + 0.12),
        ("😀", 1.02 - 0.12),
        ("\ud83d", 0.24),
    ],
)
def test_estimate(text: str, tokens: float) -> None:
    """A Han character counts 0.68, a letter 0.24; a lone half pair, which no tokenizer reads, is a letter."""
    assert tokens == pytest.approx(estimate(text))


@given(ANY, ANY)
def test_the_estimate_of_pieces_is_that_of_the_whole(one: str, other: str) -> None:
    """However a text comes, its pieces add up."""
    assert estimate(one) + estimate(other) == pytest.approx(estimate(one + other))


@given(ANY)
def test_no_character_is_free(text: str) -> None:
    """Every character counts at least as much as a letter, and at most one token."""
    rounding = 1e-9 * len(text)
    assert 0.24 * len(text) <= estimate(text) + rounding
    assert estimate(text) <= len(text) + rounding
