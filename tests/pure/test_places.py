"""Names of fields as they may be written down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.places import known


@pytest.mark.parametrize(
    "place",
    [
        *("messages[0]", "messages[1234]", "tools", "content", "content[1]", "message.content", "reasoning_details.thinking"),
        *("tool_calls.0", "tool_calls.0.name", "logprobs.content", "?message.audio", "?tool_calls.1.custom.input"),
    ],
)  # fmt: skip
def test_known_names_stay(place: str) -> None:
    assert place == known(place)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("my number is 13812345678", "?"),
        ("13812345678", "?"),
        ("123", "?"),
        ("?my number is 13812345678", "?"),
        ("?message.my number.content", "?message.?"),
        ("logprobs.my number", "logprobs.?"),
        ("content[13812345678]", "?"),
        ("tool_calls.13812345678", "tool_calls.?"),
        ("?content\\.is 13812345678", "?"),
        ("", "?"),
    ],
)
def test_others_do_not(place: str, shown: str) -> None:
    """What was unknown is told, and below which known name it stood."""
    assert shown == known(place)


@given(st.text(st.characters(exclude_characters=".")))
def test_a_long_name_is_not_repeated(name: str) -> None:
    assert known(f"?message.{name}xyz") == "?message.?"
