"""The estimate of tokens: its numbers, what sums of it may rely on, and what it learns."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.tokens import (
    ASKED_EVERY,
    HIGHEST,
    LEAST_TOKENS,
    LOWEST,
    MAX_MODELS,
    MAX_TOKENS,
    MOST_A_BYTE,
    Calibration,
    estimate,
)

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


@given(ANY, st.booleans())
def test_a_byte_of_a_body_is_so_much_at_most(text: str, ascii: bool) -> None:
    """However its JSON is written."""
    size = len(json.dumps(text, ensure_ascii=ascii).encode("utf-8", "replace"))
    assert estimate(text) <= MOST_A_BYTE * size


# Calibration


def taught(*lessons: tuple[float, object], model: str = "m") -> Calibration:
    calibration = Calibration()
    for estimated, reported in lessons:
        calibration.learn(model, estimated, reported)
    return calibration


def test_an_unknown_model_is_estimated_as_it_is() -> None:
    """Nothing known is a factor of one, and what is learned about a model is not said of another."""
    calibration = taught((1000, 2000))
    assert 2.0 == calibration.factor("m")
    assert 1.0 == calibration.factor("M") == Calibration().factor("m")


def test_the_factor_follows_what_is_reported() -> None:
    """The first prompt sets it; each further one moves it by a tenth, so after seven half of the way is gone."""
    assert 1.9 == pytest.approx(taught((1000, 2000), (1000, 1000)).factor("m"))
    assert 1.5 == pytest.approx(taught((1000, 2000), *[(1000, 1000)] * 7).factor("m"), abs=0.03)
    assert 1.0 == pytest.approx(taught((1000, 2000), *[(1000, 1000)] * 99).factor("m"), abs=0.001)


@pytest.mark.parametrize(
    "reported",
    [None, True, False, 0, -1, -(10**30), MAX_TOKENS + 1, 10**60, 1000.0, float("nan"), float("inf"), "1000", [], {}],
)
def test_what_is_no_number_of_tokens(reported: object) -> None:
    """An upstream may report anything; what cannot be a number of tokens teaches nothing."""
    assert 1.0 == taught((1000, reported)).factor("m")
    assert 2.0 == taught((1000, 2000), (1000, reported)).factor("m")


def test_short_prompts_teach_nothing() -> None:
    """A "Hi" of two tokens is reported as some tens: that is the template around it."""
    assert 1.0 == taught((LEAST_TOKENS - 1, 2000)).factor("m")
    assert 2.0 == taught((LEAST_TOKENS, 2 * LEAST_TOKENS)).factor("m")


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(-1, 2 * MAX_TOKENS))))
def test_the_factor_is_bounded(lessons: list[tuple[float, int]]) -> None:
    """Whatever is reported, the factor stays between a quarter and four."""
    assert LOWEST <= taught(*lessons).factor("m") <= HIGHEST


@given(st.floats(LOWEST, HIGHEST), st.integers(LEAST_TOKENS, 100_000))
def test_the_truth_is_learned(ratio: float, estimated: int) -> None:
    """Told the same again and again, it says the same."""
    calibration = taught(*[(estimated, round(ratio * estimated))] * 5)
    assert ratio == pytest.approx(calibration.factor("m"), rel=0.02)


def test_models_are_bounded() -> None:
    """Clients may name any model where an upstream serves all; the ones learned about longest ago are forgotten."""
    calibration = taught((1000, 3000))
    for number in range(MAX_MODELS - 1):
        calibration.learn(f"m{number}", 1000, 2000)
    calibration.learn("m", 1000, 3000)
    calibration.learn("one more", 1000, 2000)
    known = [model for model in ("m", *(f"m{n}" for n in range(MAX_MODELS))) if calibration.factor(model) != 1.0]
    assert ["m", *(f"m{n}" for n in range(1, MAX_MODELS - 1))] == known


def test_whom_to_ask() -> None:
    """A model that nothing is known about, and then one prompt of 32; a short prompt never."""
    calibration = Calibration()
    assert not calibration.should_ask("gpt-4", LEAST_TOKENS - 1)
    assert all(calibration.should_ask("gpt-4", LEAST_TOKENS) for _ in range(32))
    calibration.learn("gpt-4", 1000, 1000)
    assert 10 == sum(calibration.should_ask("gpt-4", LEAST_TOKENS) for _ in range(10 * ASKED_EVERY))
    assert calibration.should_ask("other", LEAST_TOKENS)
    calibration.learn("other", 1000, 1000)
    turns = [calibration.should_ask(model, LEAST_TOKENS) for _ in range(ASKED_EVERY) for model in ("gpt-4", "other")]
    assert 2 == sum(turns)  # each has its own count
